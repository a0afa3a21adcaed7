"""All results of random transforms that choose among a few, and the choice among them when they are read again.

A cache holds every result, so that a flip or the draw of a caption stays random. The choice is made by the transform
itself, with the generator that it would have had: the same one as without a cache.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxdiff.data.pipeline import Choice, Transform
from jaxdiff.data.sources import Example
from jaxdiff.errors import UserError, expect

FIELD = "outcomes"
"""The field of an example that holds the results that are not chosen yet."""


def outcomes(transforms: Sequence[Transform], example: Example) -> tuple[list[Example], tuple[int, ...]]:
    """Every result of a chain of transforms, and how many each of them chooses from; the first ones vary slowest.

    Raises:
      UserError: a transform draws something else than a choice.
    """
    found, counts = [example], []
    for position, transform in enumerate(transforms):
        if isinstance(transform, Choice):
            count = transform.count(found[0])
            same = all(transform.count(each) == count for each in found)
            name, fix = type(transform).__name__, "train without a cache"
            expect(same, "config.data.transforms", name, "as many results of every augmented example", fix)
            found = [transform.result(each, choice) for each in found for choice in range(count)]
        else:
            count = 1
            found = [transform(each, _no_draws(transform, position)) for each in found]
        counts.append(count)
    return found, tuple(counts)


class _NoDraws:
    """Stands in for a generator, and raises a `UserError` when something is drawn."""

    def __init__(self, transform: Transform, position: int):
        self._transform, self._position = transform, position

    def __getattr__(self, name: str) -> Any:
        raise UserError(
            f"config.data.transforms[{self._position}]={self._transform!r}: expected transforms that draw nothing, "
            "or choose among a few results as HorizontalFlip does, got one that draws: a cache would hold one draw "
            "for ever. Fix: leave it out, or train without a cache"
        )


def _no_draws(transform: Transform, position: int) -> Any:
    return _NoDraws(transform, position)


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """The stored results for an example, and the choices so far.

    Attributes:
      read: the fields of a result by its number.
      counts: how many results each transform of the chain chooses from.
      choices: of the first transforms.
    """

    read: Callable[[int], Example]
    counts: tuple[int, ...]
    choices: tuple[int, ...] = ()

    def chosen(self) -> Example:
        """The fields of the result that all choices lead to; where one is left, the first."""
        open_ones = (0,) * (len(self.counts) - len(self.choices))
        return self.read(int(np.ravel_multi_index((*self.choices, *open_ones), self.counts)))


@dataclasses.dataclass(frozen=True)
class Choose:
    """The draw of a transform, for an example whose results are stored."""

    transform: Transform

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        stored: Any = example.get(FIELD)
        if stored is None:
            return example
        count, transform = stored.counts[len(stored.choices)], self.transform
        choice = transform.choose(count, rng) if isinstance(transform, Choice) else 0
        return {**example, FIELD: dataclasses.replace(stored, choices=(*stored.choices, choice))}


@dataclasses.dataclass(frozen=True)
class Read:
    """The result that was chosen, in place of all of them."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        stored: Any = example.get(FIELD)
        rest = {name: value for name, value in example.items() if name != FIELD}
        return example if stored is None else {**rest, **stored.chosen()}
