"""Parameter trees split into trained and untrained parts, and merged again.

A parameter is named by its path, ``network/encoder_0_block_0/residual/conv_0/kernel``. In a pattern of paths, * matches
any text, slashes included. A pattern that names a module, ``network/encoder_0_block_0``, covers all its parameters.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxdiff.errors import expect
from jaxdiff.typing import Params

SHOWN = 8
"""Paths that an error lists."""


def paths(tree: Params) -> dict[str, Any]:
    """The arrays of a tree of dicts by their paths."""
    leaves = jax.tree.leaves_with_path(tree)
    return {"/".join(str(key.key) for key in path if hasattr(key, "key")): leaf for path, leaf in leaves}


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern names this parameter, or a module that contains it."""
    return any(fnmatch.fnmatchcase(path, each) or fnmatch.fnmatchcase(path, f"{each}/*") for each in patterns)


def split(params: Params, untrained: Sequence[str]) -> tuple[Params, Params]:
    """The trained and the untrained part of `params`, by patterns; both are trees of dicts without empty branches.

    Raises:
      UserError: a pattern names no parameter, or all parameters are untrained.
    """
    if not untrained:
        return params, {}
    found = paths(params)
    for pattern in untrained:
        some = any(matches(path, (pattern,)) for path in found)
        fix = f"use paths such as {some_of(found)}"
        expect(some, "optimizer.frozen", pattern, "a pattern that names a parameter", fix, "no match")
    trained = any(not matches(path, untrained) for path in found)
    some = "some trained parameters"
    expect(trained, "optimizer.frozen", tuple(untrained), some, "name fewer patterns", "none")
    return _kept(params, untrained, False), _kept(params, untrained, True)


def merge(first: Params, second: Params) -> Params:
    """The union of two trees of dicts that share no array: the inverse of `split`."""
    if not second:
        return first
    merged = dict(first)
    for name, value in second.items():
        merged[name] = merge(merged[name], value) if name in merged else value
    return merged


def some_of(names: Any) -> str:
    """The first few of many names, for errors."""
    listed = list(names)
    rest = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + rest


def _kept(tree: Params, patterns: Sequence[str], matching: bool, prefix: str = "") -> Params:
    """The branches whose paths match, or those whose paths do not."""
    kept = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            inner = _kept(value, patterns, matching, f"{path}/")
            if inner:
                kept[name] = inner
        elif matches(path, patterns) == matching:
            kept[name] = value
    return kept
