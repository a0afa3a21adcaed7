"""All results of random transforms that choose among a few, and the choice among them when they are read again.

A cache holds every result, so that a flip or the draw of a caption stays random. The choice is made by the transform
itself, with the generator that it would have had: the same one as without a cache.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxdiff.data.pipeline import Choice, Pipeline, Transform
from jaxdiff.data.sources import Example
from jaxdiff.errors import UserError, expect

FIELD = "outcomes"
"""The field of an example that holds the results that are not chosen yet."""


def chain(pipeline: Pipeline) -> dict[str, Transform]:
    """The transforms of training examples in their order, by their paths in the config."""
    return {
        f"config.data.{name}[{i}]": transform
        for name in ("transforms", "conditions")
        for i, transform in enumerate(getattr(pipeline, name))
    }


def outcomes(transforms: Mapping[str, Transform], example: Example) -> tuple[list[Example], tuple[int, ...]]:
    """Every result of a chain of transforms, and how many each of them chooses from; the first ones vary slowest.

    Raises:
      UserError: a transform draws something else than a choice.
    """
    found, counts = [example], []
    for path, transform in transforms.items():
        choices = _results(path, transform, found)
        found = [result for results in choices for result in results]
        counts.append(len(choices[0]))
    return found, tuple(counts)


def _results(path: str, transform: Transform, examples: list[Example]) -> list[list[Example]]:
    """For each example all results of a transform."""
    if not isinstance(transform, Choice):
        no_draws: Any = _NoDraws(path, transform)
        return [[transform(each, no_draws)] for each in examples]
    counts = {transform.count(each) for each in examples}
    name, expected = type(transform).__name__, "as many results of each result of the transforms before it"
    expect(len(counts) == 1, path, name, expected, "train without a cache", str(sorted(counts)))
    return [[transform.result(each, choice) for choice in range(*counts)] for each in examples]


class _NoDraws:
    """Stands in for a generator, and raises a `UserError` when something is drawn."""

    def __init__(self, path: str, transform: Transform):
        self._path, self._transform = path, transform

    def __getattr__(self, name: str) -> Any:
        raise UserError(
            f"{self._path}={self._transform!r}: expected a transform that draws nothing, or chooses among a few "
            "results as HorizontalFlip does, got one that draws: a cache would hold one draw for ever. "
            "Fix: leave it out, or train without a cache"
        )


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
        left = (0,) * (len(self.counts) - len(self.choices))
        return self.read(int(np.ravel_multi_index((*self.choices, *left), self.counts)))


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
        chosen: Any = dataclasses.replace(stored, choices=(*stored.choices, choice))
        return {**example, FIELD: chosen}


@dataclasses.dataclass(frozen=True)
class Read:
    """The result that was chosen, in place of all of them."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        stored: Any = example.get(FIELD)
        rest = {name: value for name, value in example.items() if name != FIELD}
        return example if stored is None else {**rest, **stored.chosen()}
