"""Trees of parameters: dicts of dicts of arrays, in which a parameter is named by its path.

A path is ``network/encoder_0_block_0/residual/conv_0/kernel``. In a pattern of paths, * matches any text, slashes
included. A pattern that names a module, ``network/encoder_0_block_0``, covers all its parameters. A pattern that begins
with ! excludes what the others name: ``("*", "!network/stem")`` are all parameters but those of the stem.
"""

import fnmatch
import functools
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.errors import UserError, expect
from jaxdiff.typing import Params

HALF = ("bfloat16", "float16")
"""Names of the types of half precision."""

SHOWN = 8
"""Paths that an error lists."""

NOT = "!"
"""The first character of a pattern that excludes."""


def paths(tree: Params) -> dict[str, Any]:
    """The arrays of a tree of dicts by their paths."""
    leaves = jax.tree.leaves_with_path(tree)
    return {"/".join(str(key.key) for key in path if hasattr(key, "key")): leaf for path, leaf in leaves}


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern names this parameter, or a module that contains it, and no pattern excludes it."""
    excluding = [each.removeprefix(NOT) for each in patterns if each.startswith(NOT)]
    naming = [each for each in patterns if not each.startswith(NOT)]
    return _named(path, naming) and not _named(path, excluding)


def check_patterns(field: str, patterns: Sequence[str], known: Collection[str], what: str) -> None:
    """Raise `UserError` unless each pattern names one of the known paths, of the kind `what`."""
    for pattern in patterns:
        some = any(_named(path, [pattern.removeprefix(NOT)]) for path in known)
        fix = f"use paths such as {some_of(known)}"
        expect(some, field, pattern, f"a pattern that names a {what}", fix, "no match")


def check_like(field: str, expected: Params, found: Params, fix: str, types: bool = True) -> None:
    """Raise `UserError` unless two trees, boxed or not, have the same paths and shapes.

    Args:
      field: the field of the config that gave `found`.
      expected, found: the trees.
      fix: of the error.
      types: whether the types of the arrays have to agree as well.
    """

    def stated(tree: Params) -> dict[str, str]:
        return {
            path: f"{leaf.dtype if types else ''}{list(leaf.shape)}" for path, leaf in paths(tree).items()
        }

    ours, theirs = stated(expected), stated(found)
    wrong = sorted(path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path))
    if wrong:
        first, more = wrong[0], f" ({len(wrong)} parameters differ)"
        wanted, got = ours.get(first, "no such parameter"), theirs.get(first, "none")
        raise UserError(f"{field}={first}: expected {wanted}, got {got}{more}. Fix: {fix}")


def merge(first: Params, second: Params) -> Params:
    """The union of two trees of dicts that share no array."""
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


def with_dtype(tree: Params, dtype: Any) -> Params:
    """The tree with its floats of two axes or more, kernels and tables, in this type; float32 means at least that.

    Those of fewer axes stay in float32: gains, biases and frequencies are few, and norms compute with them.
    """
    return jax.tree.map(lambda leaf: leaf.astype(dtype_in(leaf, dtype)), tree)


def dtype_in(leaf: Any, dtype: Any) -> Any:
    """The type of an array in a tree of this type, see `with_dtype`."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf.dtype
    half = len(leaf.shape) >= 2 and dtype in HALF
    return jnp.dtype(dtype) if half else jnp.promote_types(leaf.dtype, jnp.float32)


def branch_at(tree: Params, path: Sequence[str]) -> Params:
    """The branch of a tree of dicts at `path`."""
    return functools.reduce(lambda branch, name: branch[name], path, tree)


def without_branch(tree: Params, path: Sequence[str]) -> Params:
    """A tree of dicts without the branch at `path`."""
    first, *rest = path
    if not rest:
        return {key: value for key, value in tree.items() if key != first}
    return {**tree, first: without_branch(tree[first], rest)}


def with_branch(tree: Params, path: Sequence[str], branch: Params) -> Params:
    """A tree of dicts with another branch at `path`."""
    first, *rest = path
    return {**tree, first: with_branch(tree.get(first, {}), rest, branch) if rest else branch}


def _named(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, each) or fnmatch.fnmatchcase(path, f"{each}/*") for each in patterns)
