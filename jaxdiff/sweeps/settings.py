"""Settings of a sweep: their values on the command line, and all combinations. Imports nothing heavy."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from jaxdiff.errors import expect

OWN = "own"
"""The value of the run itself."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One combination. `OWN` and None stand for the value of the run, see `jaxdiff.sweeps.guidance.resolved`.

    Attributes:
      guidance: guidance scale.
      steps: number of steps.
      sampler: as of ``sample --sampler``.
      interval: noise levels of the guidance, ``0.3:3``; "none" for all.
      rule: how guidance acts, see `jaxdiff.sweeps.guidance`.
      ema: length of the average of the weights, as a fraction of training.
      negative: what guidance leads away from, ``text=blurry``; `OWN` for no condition.
    """

    guidance: float | None = None
    steps: int | None = None
    sampler: str = OWN
    interval: str = OWN
    rule: str = OWN
    ema: float | None = None
    negative: str = OWN

    @property
    def measure(self) -> str:
        """What acts against the loss of diversity, in words; empty for plain guidance."""
        parts = [] if self.rule == OWN else [self.rule]
        if self.interval not in (OWN, "none"):
            parts.append("the interval {} to {}".format(*self.interval.split(":")))
        parts += [] if self.negative == OWN else [f"negative {self.negative}"]
        return " and ".join(parts)

    @property
    def family(self) -> tuple[Any, ...]:
        """What curves over the guidance scale have in common: sampler, steps and average."""
        return (self.sampler, self.steps, self.ema)

    def __str__(self) -> str:
        guidance = "own guidance" if self.guidance is None else f"guidance {self.guidance:g}"
        parts = [f"{guidance}{f' with {self.measure}' if self.measure else ''}"]
        parts += [] if self.sampler == OWN else [self.sampler]
        parts += [] if self.steps is None else [f"{self.steps} steps"]
        parts += [] if self.ema is None else [f"EMA {self.ema:g}"]
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class Axes:
    """The values of each field of a `Setting`."""

    guidance: tuple[float | None, ...] = (None,)
    steps: tuple[int | None, ...] = (None,)
    sampler: tuple[str, ...] = (OWN,)
    interval: tuple[str, ...] = (OWN,)
    rule: tuple[str, ...] = (OWN,)
    ema: tuple[float | None, ...] = (None,)
    negative: tuple[str, ...] = (OWN,)

    @classmethod
    def parse(cls, texts: Mapping[str, str | Sequence[str] | None]) -> "Axes":
        """The axes of the flags of these names; a list for a flag that is repeated, None for one that was not given.

        Raises:
          UserError: a value is malformed, or given twice.
        """
        given = {name: text for name, text in texts.items() if text is not None}
        return cls(**{name: values(f"--{name}", text, READ[name]) for name, text in given.items()})

    def settings(self) -> list[Setting]:
        """All combinations; settings that share a program follow each other."""
        axes = (
            self.ema, self.rule, self.sampler, self.steps, self.interval, self.negative, self.guidance
        )  # fmt: skip
        found = itertools.product(*axes)
        return [
            Setting(guidance, steps, sampler, interval, rule, ema, negative)
            for ema, rule, sampler, steps, interval, negative, guidance in found
        ]


def values(flag: str, text: str | Sequence[str], read: Callable[[str, str], T]) -> tuple[T, ...]:
    """The values of a flag: those of a list, or of a text in which commas separate them outside brackets."""
    words = _split(text) if isinstance(text, str) else [*text]
    expect(all(words), flag, text, "values separated by commas", f"{flag}=VALUE,VALUE", "an empty one")
    found = tuple(read(flag, word) for word in words)
    twice = next((word for word, value in zip(words, found, strict=True) if found.count(value) > 1), None)
    expect(twice is None, flag, text, "different values", "give each once", f"{twice} twice")
    return found


def _split(text: str) -> list[str]:
    words, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            words.append("")
        else:
            words[-1] += letter
    return [word.strip() for word in words]


def _number(flag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    expect(math.isfinite(value), flag, text, "finite numbers", "give numbers, such as 1,1.5,2", text)
    return value


def _count(flag: str, text: str) -> int:
    whole = text.isascii() and text.isdigit() and int(text) > 0
    expect(whole, flag, text, "whole numbers > 0", "give counts, such as 4,8,16", text)
    return int(text)


def _interval(flag: str, text: str) -> str:
    if text == "none":
        return text
    low, colon, high = text.partition(":")
    fix = "give LOW:HIGH, such as 0.3:3, or none"
    expect(bool(colon), flag, text, "noise levels LOW:HIGH", fix, text)
    numbers = [float("inf") if word == "inf" else _number(flag, word) for word in (low, high)]
    expect(0 <= numbers[0] < numbers[1], flag, text, "0 <= LOW < HIGH", fix, text)
    return ":".join(f"{number:g}" for number in numbers)


def _length(flag: str, text: str) -> float:
    value = _number(flag, text)
    expect(0 < value < 1, flag, text, "fractions of training in (0, 1)", "try 0.05,0.1", text)
    return value


READ: dict[str, Callable[[str, str], Any]] = {
    "guidance": _number,
    "steps": _count,
    "sampler": lambda flag, text: text,
    "interval": _interval,
    "rule": lambda flag, text: text,
    "ema": _length,
    "negative": lambda flag, text: OWN if text == "none" else text,
}
"""For each flag, what reads one of its values."""


def unique(
    settings: Sequence[tuple[Setting, T]], meaning: Callable[[Setting, T], Any]
) -> list[tuple[Setting, T]]:
    """The settings, each once, also where two are written differently."""
    found: dict[Any, tuple[Setting, T]] = {}
    for setting, part in settings:
        found.setdefault(meaning(setting, part), (setting, part))
    return list(found.values())
