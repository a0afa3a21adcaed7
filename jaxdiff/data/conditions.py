"""Fields of an example that are made of its image: what conditions see. They follow crops and flips in a pipeline."""

import dataclasses

import numpy as np

from jaxdiff.data import images
from jaxdiff.data.degradations import Degradation
from jaxdiff.data.sources import Example
from jaxdiff.errors import require

OWN = ("image", "index", "label")


@dataclasses.dataclass(frozen=True)
class Degrade:
    """A degraded image as a field: ``Degrade("low_res", Downsample(4))``.

    Attributes:
      field: its name in the batch, that of the condition which reads it.
      degradation: what happens to the image.
    """

    field: str
    degradation: Degradation

    def __post_init__(self):
        require(self.field not in OWN, "field", self.field, "it would be overwritten", "use another name")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return {**example, self.field: self.degradation(example["image"], rng)}


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several degradations as a field, drawn anew each time, and which one it was: one model for all tasks.

    Attributes:
      field: name of the degraded image, float32 between -1 and 1 whatever was drawn.
      degradations: of which one is drawn; their results must have one shape.
      weights: how often each is drawn, up to a factor; equally often by default.
      task_field: name of the number of the degradation that was drawn, int32; None for not to tell.
    """

    field: str
    degradations: tuple[Degradation, ...]
    weights: tuple[float, ...] | None = None
    task_field: str | None = "task"

    def __post_init__(self):
        for name in ("field", "task_field"):
            value = getattr(self, name)
            require(value not in OWN, name, value, "it would be overwritten", "use another name")
        fix = "use two names"
        require(self.field != self.task_field, "task_field", self.task_field, "it is field as well", fix)
        count = len(self.degradations)
        require(count > 0, "degradations", self.degradations, "there is no choice", "give at least one")
        fits = self.weights is None or (len(self.weights) == count and min(self.weights) > 0)
        fix = "give a number > 0 for each, or None"
        require(fits, "weights", self.weights, f"these are no weights of {count} degradations", fix)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        weights = np.ones(len(self.degradations)) if self.weights is None else np.asarray(self.weights)
        task = int(rng.choice(len(weights), p=weights / weights.sum()))
        shown = self.degradations[task](example["image"], rng)
        shown = images.to_float(shown) if shown.dtype == np.uint8 else shown
        told: Example = {} if self.task_field is None else {self.task_field: np.array(task, np.int32)}
        return {**example, self.field: shown, **told}
