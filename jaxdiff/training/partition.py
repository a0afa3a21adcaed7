"""Parameter trees split into trained and untrained parts, by patterns of paths as in `jaxdiff.trees`."""

from collections.abc import Mapping, Sequence

from jaxdiff.errors import expect
from jaxdiff.trees import check_patterns, matches, paths
from jaxdiff.typing import Params


def split(params: Params, untrained: Sequence[str]) -> tuple[Params, Params]:
    """The trained and the untrained part of `params`, by patterns; both are trees of dicts without empty branches.

    `jaxdiff.trees.merge` is the inverse.

    Raises:
      UserError: a pattern names no parameter, or all parameters are untrained.
    """
    if not untrained:
        return params, {}
    found = paths(params)
    check_patterns("optimizer.frozen", untrained, found, "parameter")
    trained = any(not matches(path, untrained) for path in found)
    some = "some trained parameters"
    expect(trained, "optimizer.frozen", tuple(untrained), some, "name fewer patterns", "none")
    return _kept(params, untrained, False), _kept(params, untrained, True)


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
