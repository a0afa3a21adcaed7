"""Augmentations and crops: random maps of one example, drawn from the generator that they are handed.

All that is an image in an example (three axes: height, width, channels) is cut, mirrored and resized together.
Places that are stored as numbers, such as boxes, stay as they are.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxdiff.data import images
from jaxdiff.data.sources import Example
from jaxdiff.errors import UserError, require


@dataclasses.dataclass(frozen=True)
class HorizontalFlip:
    """Mirror images left to right. Not for what has a handedness: digits, letters, captions that say "left"."""

    probability: float = 0.5

    def __post_init__(self):
        fits = 0 <= self.probability <= 1
        require(fits, "probability", self.probability, "it is a probability", "give a number from 0 to 1")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        if rng.random() >= self.probability:
            return example
        return _each_image(example, lambda image: image[:, ::-1])


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A square of `size` pixels, anywhere; all images of an example must have one size, and are cut alike."""

    size: int

    def __post_init__(self):
        require(self.size > 0, "size", self.size, "nothing would be left", "give at least 1")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        height, width = _one_size(example, self.size)
        top, left = rng.integers(height - self.size + 1), rng.integers(width - self.size + 1)
        return _each_image(example, lambda image: image[top : top + self.size, left : left + self.size])


@dataclasses.dataclass(frozen=True)
class CentreCrop:
    """The square of `size` pixels in the middle, rounded up and left; all images of an example have one size."""

    size: int

    def __post_init__(self):
        require(self.size > 0, "size", self.size, "nothing would be left", "give at least 1")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        height, width = _one_size(example, self.size)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return _each_image(example, lambda image: image[top : top + self.size, left : left + self.size])


@dataclasses.dataclass(frozen=True)
class Resize:
    """Images of bytes at another size, low-passed where they shrink; the shorter side becomes `size` pixels."""

    size: int
    method: images.Resampling = "bicubic"

    def __post_init__(self):
        require(self.size > 0, "size", self.size, "nothing would be left", "give at least 1")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        def resize(image: np.ndarray) -> np.ndarray:
            height, width, _ = image.shape
            scale = self.size / min(height, width)
            return images.resize(image, (round(height * scale), round(width * scale)), self.method)

        return _each_image(example, resize)


def _each_image(example: Example, change: Callable[[np.ndarray], np.ndarray]) -> Example:
    return {name: change(value) if np.ndim(value) == 3 else value for name, value in example.items()}


def _one_size(example: Example, crop: int) -> tuple[int, int]:
    """Height and width of all images of an example, if they agree and leave room for a crop."""
    sizes = {name: value.shape[:2] for name, value in example.items() if np.ndim(value) == 3}
    height, width = sizes["image"]
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {h} x {w}" for name, (h, w) in sizes.items())
        raise UserError(
            f"index={example['index']}: its images have different sizes ({listed}) and cannot be cut alike. "
            "Fix: crop first, and make the smaller ones of what is left"
        )
    if crop > min(height, width):
        raise UserError(
            f"size={crop}: example {example['index']} has only {height} x {width} pixels. "
            "Fix: crop less, or resize before"
        )
    return height, width
