"""Branches of trees of parameters, by the path of a module."""

import functools
from collections.abc import Sequence

from jaxdiff.errors import expect
from jaxdiff.typing import Params


def branch_at(tree: Params, path: Sequence[str]) -> Params:
    """The branch of a tree of dicts at `path`."""
    return functools.reduce(lambda branch, name: branch[name], path, tree)


def without_branch(tree: Params, path: Sequence[str], name: str) -> Params:
    """A tree of dicts without the branch at `path`; `name` is for the error that there is none."""
    first, *rest = path
    expect(
        first in tree, "config.task.pretrained", name, "the path of a module", f"use one of {', '.join(tree)}"
    )
    if not rest:
        return {key: value for key, value in tree.items() if key != first}
    return {**tree, first: without_branch(tree[first], rest, name)}


def with_branch(tree: Params, path: Sequence[str], branch: Params) -> Params:
    """A tree of dicts with another branch at `path`."""
    first, *rest = path
    return {**tree, first: with_branch(tree.get(first, {}), rest, branch) if rest else branch}
