"""Augmentations and crops: random functions of one example, drawn with a given generator.

All images of an example (fields with three axes: height, width, channels) are cropped, mirrored and resized alike.
Positions stored as numbers, such as boxes, stay unchanged.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from jaxdiff.data import images
from jaxdiff.data.decoding import MAX_PIXELS
from jaxdiff.data.sources import Example
from jaxdiff.errors import UserError, between, expect, one_of, positive

Position = Literal["centre", "random"]
"""Where `Cover` cuts: the middle, rounded up and left, or a uniform position."""


@dataclasses.dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors images left to right. Unsuitable for digits, letters, and captions with "left" or "right".

    Attributes:
      probability: probability of mirroring, in [0, 1].
    """

    probability: float = 0.5

    def __post_init__(self):
        between(self, "probability", 0.0, 1.0)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return self.result(example, self.choose(self.count(example), rng))

    def count(self, example: Example) -> int:
        return 2

    def choose(self, count: int, rng: np.random.Generator) -> int:
        return int(rng.random() < self.probability)

    def result(self, example: Example, choice: int) -> Example:
        """The example, or its mirror image."""
        return _each_image(example, lambda image: image[:, ::-1]) if choice else example


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Cuts a square of `size` pixels at a uniform position; all images of an example must have equal sizes."""

    size: int

    def __post_init__(self):
        positive(self, "size")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        height, width = _one_size(example, self.size)
        top, left = (int(rng.integers(side - self.size + 1)) for side in (height, width))
        return _cut(example, top, left, self.size)


@dataclasses.dataclass(frozen=True)
class CentreCrop:
    """Cuts the middle square of `size` pixels, rounded up and left; all images of an example must have equal sizes."""

    size: int

    def __post_init__(self):
        positive(self, "size")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        height, width = _one_size(example, self.size)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return _cut(example, top, left, self.size)


@dataclasses.dataclass(frozen=True)
class Resize:
    """Resizes images uint8, low-passed if they shrink; the shorter side becomes `size` pixels.

    Raises:
      UserError: the result would have more than `MAX_PIXELS` pixels, since the image is very long.
    """

    size: int
    method: images.Resampling = "bicubic"

    def __post_init__(self):
        positive(self, "size")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        def resize(image: np.ndarray) -> np.ndarray:
            height, width, _ = image.shape
            scale = self.size / min(height, width)
            new = round(height * scale), round(width * scale)
            fix = "remove the image, or cut its middle first"
            expect(math.prod(new) <= MAX_PIXELS, "index", int(example["index"]),
                   f"an image that has at most {MAX_PIXELS} pixels with a shorter side of {self.size}", fix,
                   f"{height} x {width} pixels")  # fmt: skip
            return images.resize(image, new, self.method)

        return _each_image(example, resize)


@dataclasses.dataclass(frozen=True)
class Cover:
    """Resizes images uint8 to the least size that covers `height` x `width` pixels, and cuts off what stands out.

    Height and width are scaled by one factor. Three fields float32 [2] state what was done, in pixels and with the
    vertical number first, as the conditions of SDXL do (Podell et al. 2023, section 2.2): `original_size`, the height
    and width before; `crop`, the top and left of what is kept in the resized image; `target_size`, height and width
    of what is kept.

    Raises:
      UserError: the images of an example differ in size.
    """

    height: int
    width: int
    position: Position = "centre"
    method: images.Resampling = "bicubic"

    def __post_init__(self):
        positive(self, "height", "width")
        one_of(self, "position", ("centre", "random"))

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        target = self.height, self.width
        original = _one_size(example)
        resized = covering(original, target)
        rooms = [side - kept for side, kept in zip(resized, target, strict=True)]
        drawn = self.position == "random"
        top, left = (int(rng.integers(room + 1)) if drawn else room // 2 for room in rooms)
        pixel = min(side / kept for side, kept in zip(original, target, strict=True))  # side of a new one
        right, bottom = (left + self.width) * pixel, (top + self.height) * pixel
        # The part is cut from the original, so that nothing is computed of the rest.
        box = left * pixel, top * pixel, min(right, original[1]), min(bottom, original[0])
        cut = _each_image(example, lambda image: images.resize(image, target, self.method, box))
        done = {"original_size": original, "crop": (top, left), "target_size": target}
        return {**cut, **{name: np.array(pair, np.float32) for name, pair in done.items()}}


def covering(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The least (height, width), rounded down, to which an image is resized so that it covers `target`."""
    (height, width), (rows, columns) = size, target
    if width * rows >= columns * height:
        return rows, width * rows // height
    return height * columns // width, columns


def _each_image(example: Example, change: Callable[[np.ndarray], np.ndarray]) -> Example:
    return {name: change(value) if np.ndim(value) == 3 else value for name, value in example.items()}


def _cut(example: Example, top: int, left: int, size: int) -> Example:
    return _each_image(example, lambda image: image[top : top + size, left : left + size])


def _one_size(example: Example, crop: int = 1) -> tuple[int, int]:
    """The common height and width of an example's images, which must be at least `crop`."""
    sizes = {name: value.shape[:2] for name, value in example.items() if np.ndim(value) == 3}
    height, width = sizes["image"]
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {h} x {w}" for name, (h, w) in sizes.items())
        raise UserError(
            f"index={example['index']}: expected images of equal sizes, got {listed}. "
            "Fix: crop first, and compute smaller images from the crop"
        )
    if crop > min(height, width):
        raise UserError(
            f"size={crop}: expected at most the shorter side of example {example['index']}, got {height} x {width} "
            "pixels. Fix: crop less, or resize first"
        )
    return height, width
