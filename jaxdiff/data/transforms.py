"""Augmentations: random maps of one example, drawn from the generator that they are handed."""

import dataclasses

import numpy as np

from jaxdiff.data.sources import Example
from jaxdiff.errors import require


@dataclasses.dataclass(frozen=True)
class HorizontalFlip:
    """Mirror an image left to right. Not for what has a handedness: digits, letters, road signs."""

    probability: float = 0.5

    def __post_init__(self):
        fits = 0 <= self.probability <= 1
        require(fits, "probability", self.probability, "it is a probability", "give a number from 0 to 1")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        if rng.random() >= self.probability:
            return example
        return {**example, "image": example["image"][:, ::-1]}
