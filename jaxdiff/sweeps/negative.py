"""Negative conditions of a setting: what guidance leads away from, instead of no condition."""

from collections.abc import Mapping
from typing import Any

from jaxdiff.conditioning.condition import Condition
from jaxdiff.errors import expect
from jaxdiff.sweeps.settings import OWN

FLAG = "--negative"


def negative_of(text: str, conditions: Mapping[str, Condition]) -> dict[str, Any] | None:
    """The condition of ``NAME=VALUE``, one value for all samples; None for the null.

    Raises:
      UserError: the model has no such condition, or the condition has no such value.
    """
    if text == OWN:
        return None
    name, equals, value = text.partition("=")
    expect(bool(name and equals), FLAG, text, "NAME=VALUE or none", f"write {FLAG} NAME=VALUE")
    known = ", ".join(conditions) or "none"
    expect(name in conditions, FLAG, text, "a condition of the model", f"choose from {known}", name)
    found = conditions[name].parse(value, f"{FLAG} {name}")
    expect(len(found) == 1, FLAG, text, "one value", "give one value in each flag", f"{len(found)} values")
    conditions[name].check(conditions[name].read(found, f"{FLAG} {name}"), f"{FLAG} {name}")
    return {name: found[0]}
