"""What the flags of `jaxdiff.sample` ask for, put together and checked against what the model has."""

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.cli import values as words
from jaxdiff.errors import UserError, require

Shape = tuple[int, int, int]


def conditions(flags: argparse.Namespace, conditioner: Any, shape: Shape) -> tuple[dict[str, Any], int]:
    """The conditions that the flags give to images, and how many images these are.

    Args:
      conditioner: has all conditions that there are to give.
      shape: of the images that it was trained with.

    Raises:
      UserError: a condition is unknown, given twice, or missing; it lists what there is.
    """
    parts = conditioner.conditions
    given: dict[str, list | None] = {}
    for flag, found in _sources(flags, parts, shape):
        for name, items in found.items():
            require(name not in given, flag, name, "it is given twice", "give it in one way")
            given[name] = items
    every = f"it has: {words.listed(parts)}"
    if flags.label is not None:
        require("label" in parts, "--label", flags.label, "the model has no label", f"leave it out; {every}")
        require("label" not in given, "--label", flags.label, "it is given twice", "give it in one way")
    if "label" in parts and "label" not in given and (flags.label or flags.conditions is None):
        given["label"] = words.labels(flags.label, parts["label"].num_classes)
    lacking = [name for name in parts if name not in given and not conditioner.has_default(name)]
    if lacking:
        raise UserError(
            f"--condition {lacking[0]}: the model needs it. Fix: give {', '.join(lacking)}; {every}"
        )
    found, n = words.in_turn(given, flags.n)
    if isinstance(found.get("label"), int):
        found["label"] = [found["label"]] * n  # as it is stored: a class for each image
    return found, n


def _sources(
    flags: argparse.Namespace, parts: words.Parts, shape: Shape
) -> list[tuple[str, Mapping[str, list]]]:
    found: list[tuple[str, Mapping[str, list]]] = []
    if flags.conditions is not None:
        found.append(("--conditions", words.lines("--conditions", flags.conditions, parts, shape)))
    if flags.text:
        fix = f"it has: {words.listed(parts)}"
        require("text" in parts, "--text", flags.text[0], "the model has no condition of the name text", fix)
        found.append(("--text", {"text": list(flags.text)}))
    for flag, given in (("--image", flags.image), ("--condition", flags.condition)):
        found.append((flag, words.values(flag, given, parts, shape)))
    return found


def completed(
    conditions: Mapping[str, Any], parts: words.Parts, mask: np.ndarray | None
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Conditions in which ``--mask`` has made a part of the pictures transparent, and what is left of the mask.

    It stays as it is where no condition takes it, as a `PartialImage` does.
    """
    takers = [
        name for name, value in conditions.items() if value is not None and hasattr(parts[name], "known")
    ]
    if mask is None or not takers:
        return dict(conditions), mask
    gaps = {name: words.with_gaps("--mask", name, conditions[name], parts[name], mask) for name in takers}
    return {**conditions, **gaps}, None


def guidance(text: str | None, parts: words.Parts) -> float | dict[str, float] | None:
    """A scale, or one for each of some conditions."""
    if text is None or "=" in text:
        return None if text is None else words.numbers("--guidance", text, parts)
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"--guidance={text}: it is no scale. Fix: give a number, or NAME=NUMBER,..."
        ) from None


def levels(flags: argparse.Namespace, parts: words.Parts) -> dict[str, float]:
    """How noisy conditions are to be made."""
    return {
        name: level for word in flags.level for name, level in words.numbers("--level", word, parts).items()
    }


def one_for_all(flag: str, given: list[str], parts: words.Parts, shape: Shape) -> dict[str, Any]:
    """``label=5``: the same condition for every image."""
    found = words.values(flag, given, parts, shape)
    for name, items in found.items():
        require(len(items) == 1, flag, name, "it is given twice", "give it once")
    return {name: items[0] for name, items in found.items()}
