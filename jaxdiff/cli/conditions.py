"""Conditions of a sampling command: its flags as validated values."""

import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.cli import values
from jaxdiff.cli.values import Conditions
from jaxdiff.conditioning.condition import Condition
from jaxdiff.data.classes import Names, numbers
from jaxdiff.errors import UserError, expect


class Requested(NamedTuple):
    """The conditions of a sampling command.

    Attributes:
      values: for each condition one value per image, one for all, or None.
      n: number of images.
      rows: names of the classes if all are sampled in turn, for a grid with a row per class; else empty.
    """

    values: dict[str, Any]
    n: int
    rows: Names


def conditions(flags: argparse.Namespace, available: Conditions, n: int | None = None) -> Requested:
    """The conditions that the flags give.

    Without a value for the class label of a model, all its classes are sampled in turn. A condition that `--known` or
    `--edit` fills together with `--mask` may be missing.

    Args:
      flags: label, text, image, condition, conditions, n, known, edit and mask of `jaxdiff.sample`.
      available: all conditions that can be given.
      n: number of images; if None, as many as the condition with the most values has.

    Raises:
      UserError: a condition is unknown, given twice, or missing; it lists the conditions of the model.
    """
    given: dict[str, list] = {}
    for flag, found in _sources(flags, available):
        for name, items in found.items():
            if name in given:
                raise UserError(
                    f"{flag}={name!r}: expected {name} once, got it twice. Fix: give it in one way"
                )
            given[name] = items
    rows: Names = ()
    labels = _with_flag("label", available)
    if len(labels) == 1 and labels[0] not in given and flags.conditions is None:
        rows = _classes(available[labels[0]])
        given[labels[0]] = list(map(np.int64, range(len(rows))))
    elif flags.label == "all" and flags.conditions is None:
        rows = _classes(available[labels[0]])
    completes = flags.mask is not None and (flags.known is not None or flags.edit is not None)
    completing = _with_flag("known", available) if completes else []
    required = [name for name, each in available.items() if each.default is None and name not in completing]
    missing = [name for name in required if name not in given]
    if missing:
        raise UserError(
            f"--condition {missing[0]}=: expected a value for this condition of the model, got none. "
            f"Fix: give {', '.join(missing)}; the model has: {values.listed(available)}"
        )
    return Requested(*values.in_turn(given, n), rows)


def _classes(label: Condition) -> Names:
    return label.class_names or numbers(label.classes) or ()


def _sources(flags: argparse.Namespace, available: Conditions) -> list[tuple[str, Mapping[str, list]]]:
    """The values of each flag, per condition."""
    found: list[tuple[str, Mapping[str, list]]] = []
    if flags.conditions is not None:
        found.append(("--conditions", values.lines("--conditions", flags.conditions, available)))
    if flags.text:
        found.append(("--text", {_only("text", flags.text[0], available): list(flags.text)}))
    images = values.values("--image", flags.image, available)
    for name in images:
        flag, got = available[name].flag, type(available[name]).__name__
        words = flag in ("text", "label")
        expect(not words, "--image", name, "a condition that is an image", f"use --{flag}", got)
    found.append(("--image", images))
    found.append(("--condition", values.values("--condition", flags.condition, available)))
    if flags.label is not None:
        name = _only("label", flags.label, available)
        items = available[name].parse(flags.label, "--label")
        found.append(("--label", {name: items}))
    return found


def _with_flag(flag: str, available: Conditions) -> list[str]:
    return [name for name, each in available.items() if each.flag == flag]


def _only(flag: str, given: str, available: Conditions) -> str:
    """The name of the one condition behind ``--label`` or ``--text``."""
    names = _with_flag(flag, available)
    if not names:
        raise UserError(
            f"--{flag}={given!r}: expected a model with a {flag}, got {values.listed(available)}. "
            f"Fix: leave --{flag} out"
        )
    if len(names) > 1:
        listed = ", ".join(names)
        raise UserError(
            f"--{flag}={given!r}: expected one condition that is a {flag}, got {listed}. "
            f"Fix: write --condition {names[0]}=VALUE"
        )
    return names[0]


def apply_mask(
    given: Mapping[str, Any], available: Conditions, mask: np.ndarray | None
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Conditions in which ``--mask`` marks the pixels to generate, and the mask if no condition takes it.

    A `PartialImage` takes it: its image becomes transparent there.
    """
    if mask is None:
        return dict(given), None
    masked = {
        name: available[name].masked(value, mask, f"--mask {name}")
        for name, value in given.items()
        if value is not None
    }
    taken = {name: value for name, value in masked.items() if value is not None}
    return {**given, **taken}, None if taken else mask


def apply_levels(
    given: Mapping[str, Any], available: Conditions, levels: Mapping[str, float]
) -> dict[str, Any]:
    """Conditions at the noise levels of ``--level``."""
    changed = dict(given)
    for name, level in levels.items():
        expect(given.get(name) is not None, "--level", name, "a condition that is given", "give it as well")
        changed[name] = available[name].with_level(given[name], level)
    return changed


def guidance(text: str | None, available: Conditions) -> float | dict[str, float] | None:
    """``--guidance``: a scale, or one for each of some conditions."""
    if text is None or "=" in text:
        return None if text is None else values.numbers("--guidance", text, available)
    return values.number("--guidance", text)


def levels(words: list[str], available: Conditions) -> dict[str, float]:
    """``--level``: noise levels by condition."""
    return {
        name: level for word in words for name, level in values.numbers("--level", word, available).items()
    }


def one_for_all(flag: str, words: list[str], available: Conditions) -> dict[str, Any]:
    """Conditions that are the same for every image: ``label=5``."""
    found = values.values(flag, words, available)
    for name, items in found.items():
        expect(len(items) == 1, flag, name, "one value", "give it once", str(len(items)))
    return {name: items[0] for name, items in found.items()}


def to_arrays(given: Mapping[str, Any], available: Conditions, n: int) -> dict[str, np.ndarray]:
    """Conditions as arrays for an output file. A condition that is None for some image is left out."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in given.items():
        items = value if isinstance(value, list) else [value]
        if all(item is not None for item in items):
            arrays |= available[name].to_arrays(value, name, n)
    return arrays
