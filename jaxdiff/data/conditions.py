"""Condition fields computed from an example's image, such as its low resolution. They follow crops and flips."""

import dataclasses

import numpy as np

from jaxdiff.data import images
from jaxdiff.data.degradations import Degradation
from jaxdiff.data.sources import Example
from jaxdiff.errors import expect

RESERVED = ("image", "index", "label")


@dataclasses.dataclass(frozen=True)
class Degrade:
    """Stores a degraded copy of the image as a field: ``Degrade("low_res", Downsample(4))``.

    Attributes:
      field: name of the field in the batch, which is the name of the condition that reads it.
      degradation: the degradation of the image.
    """

    field: str
    degradation: Degradation

    def __post_init__(self):
        _check_name("field", self.field)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return {**example, self.field: self.degradation(example["image"], rng)}


@dataclasses.dataclass(frozen=True)
class Choice:
    """Draws one of several degradations for each example, so that one model learns all of them.

    Attributes:
      field: field of the degraded image, float32 in [-1, 1] for every degradation.
      degradations: degradations to draw from; their results must have one shape.
      weights: relative frequency of each degradation; None for equal frequencies.
      task_field: field of the drawn degradation's index, int32; None to omit it.
    """

    field: str
    degradations: tuple[Degradation, ...]
    weights: tuple[float, ...] | None = None
    task_field: str | None = "task"

    def __post_init__(self):
        _check_name("field", self.field)
        _check_name("task_field", self.task_field)
        distinct = self.field != self.task_field
        expect(
            distinct, "task_field", self.task_field, f"a name other than field={self.field!r}", "rename one"
        )
        count = len(self.degradations)
        expect(count > 0, "degradations", self.degradations, "at least one degradation", "give one")
        fits = self.weights is None or (len(self.weights) == count and min(self.weights) > 0)
        expect(
            fits, "weights", self.weights, f"{count} numbers > 0", "give one for each degradation, or None"
        )

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        weights = np.ones(len(self.degradations)) if self.weights is None else np.asarray(self.weights)
        task = int(rng.choice(len(weights), p=weights / weights.sum()))
        degraded = self.degradations[task](example["image"], rng)
        degraded = images.to_float(degraded) if degraded.dtype == np.uint8 else degraded
        index: Example = {} if self.task_field is None else {self.task_field: np.array(task, np.int32)}
        return {**example, self.field: degraded, **index}


def _check_name(field: str, name: str | None) -> None:
    fix = "use another name: this field would be overwritten"
    expect(name not in RESERVED, field, name, f"a name other than {', '.join(RESERVED)}", fix)
