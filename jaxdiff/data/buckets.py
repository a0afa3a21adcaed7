"""Aspect-ratio buckets: the few shapes to which images of many shapes are cut."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from jaxdiff.data import images
from jaxdiff.data.sources import Example
from jaxdiff.data.transforms import Cover, Position
from jaxdiff.errors import UserError, between, expect, one_of, positive

Size = tuple[int, int]
"""Height and width in pixels."""


@runtime_checkable
class Measured(Protocol):
    """Opened examples that know the sizes of their images without decoding them."""

    def sizes(self) -> Int[np.ndarray, "n 2"]:
        """Height and width of each image; zeros for one that is never read."""
        ...


def sizes_of(examples: Any) -> Int[np.ndarray, "n 2"]:
    """Height and width of the image of each of some opened examples. Unless they are `Measured`, all are decoded."""
    if isinstance(examples, Measured):
        return examples.sizes()
    found = [examples[i]["image"].shape[:2] for i in range(len(examples))]
    return np.array(found, np.int64).reshape(-1, 2)


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Aspect-ratio buckets: batches of images of many shapes, each batch of one shape (Podell et al. 2023, appendix I).

    The sides of a bucket are multiples of `step`, and no bucket has more pixels than the square of side `size`. An
    image goes to the bucket of the nearest aspect ratio. `transforms.Cover` resizes it without distortion, cuts off
    what stands out, and states both in the fields `original_size`, `crop` and `target_size`.

    Attributes:
      size: side of the square bucket, in pixels. It is the shape of all images outside of training batches.
      step: the sides of the buckets are multiples of it. The network and the codec must divide it.
      max_ratio: largest ratio of the longer to the shorter side of a bucket; 1 for the square alone.
      position: what is kept of an image, the "centre" or a "random" part.
      method: resizing method.
      small: "enlarge" images that are smaller than their bucket, or "leave_out".
      max_cut: images of which more than this fraction would be cut off are left out.
      rare: buckets with fewer images than a batch: "repeat" the images within a batch, or "leave_out".
    """

    size: int = 1024
    step: int = 64
    max_ratio: float = 2.0
    position: Position = "centre"
    method: images.Resampling = "bicubic"
    small: Literal["enlarge", "leave_out"] = "enlarge"
    max_cut: float = 1.0
    rare: Literal["repeat", "leave_out"] = "repeat"

    def __post_init__(self):
        positive(self, "size", "step")
        between(self, "max_ratio", 1.0, float("inf"))
        between(self, "max_cut", 0.0, 1.0)
        one_of(self, "small", ("enlarge", "leave_out"))
        one_of(self, "rare", ("repeat", "leave_out"))
        below = self.size // self.step * self.step
        nearest = f"{below} or {below + self.step}" if below else str(self.step)
        expected, fix = f"a multiple of step={self.step}", f"use {nearest}, or another step"
        expect(self.size % self.step == 0, "size", self.size, expected, fix)

    @property
    def shapes(self) -> tuple[Size, ...]:
        """Height and width of each bucket, from the widest to the tallest."""
        short = range(self.size, 0, -self.step)
        pairs = [(side, self.size**2 // side // self.step * self.step) for side in short]
        fitting = [(side, other) for side, other in pairs if other <= self.max_ratio * side]
        return tuple(sorted({*fitting, *((other, side) for side, other in fitting)}))

    def cover(self, shape: Size | None = None) -> Cover:
        """The transform that cuts images to a bucket, by default the square one."""
        height, width = shape or (self.size, self.size)
        return Cover(height, width, self.position, self.method)

    def check(self, examples: Any) -> None:
        """Raise `UserError` unless the images of opened examples have shapes of their own."""
        shape = examples.image_shape
        if shape is None or None not in shape:
            got = "none" if shape is None else f"all of {shape[0]} x {shape[1]}"
            raise UserError(
                f"config.data.buckets=Buckets: expected images of many shapes, got {got}. "
                "Fix: --config.data.source.size=None for an image folder, or buckets=None"
            )

    def assign(self, sizes: Int[np.ndarray, "n 2"]) -> "Assignment":
        """The bucket of each image, from their heights and widths."""
        height, width = sizes.astype(np.int64).T
        rows, columns = shapes = np.array(self.shapes, np.int64).T
        # Two buckets meet at the geometric mean of their ratios. Integers, so that all hosts decide alike.
        meet = height[:, None] ** 2 * columns[:-1] * columns[1:] >= width[:, None] ** 2 * rows[:-1] * rows[1:]
        bucket = meet.sum(axis=1)
        readable = np.minimum(height, width) > 0
        ratios = shapes.T[bucket] / np.where(readable[:, None], sizes, 1)
        scale, cut = ratios.max(axis=1), 1 - ratios.min(axis=1) / ratios.max(axis=1)
        small = (scale > 1) & (self.small == "leave_out")
        kept = readable & ~small & (cut <= self.max_cut)
        return Assignment(self.shapes, np.where(kept, bucket, LEFT_OUT), scale, cut)

    def groups(self, assignment: "Assignment", batch_size: int) -> "list[Group]":
        """The images of each bucket that is used, in the order of `shapes`.

        Raises:
          UserError: all images are left out.
        """
        found = assignment.groups()
        kept = [group for group in found if len(group.indices) >= batch_size or self.rare == "repeat"]
        got = f"at most {max(len(group.indices) for group in found)} in one" if found else "none"
        fix = "leave out fewer, by small, max_cut and rare"
        expect(bool(kept), "config.data.buckets", "Buckets", "images for at least one bucket", fix, got)
        return kept

    def notes(self, assignment: "Assignment", batch_size: int) -> Iterator[str]:
        """What happens to the images, in a few lines."""
        groups = self.groups(assignment, batch_size)
        used = np.concatenate([group.indices for group in groups])
        cut, scale = assignment.cut[used], assignment.scale[used]
        shapes = [" x ".join(map(str, group.shape or ())) for group in groups]
        yield (
            f"buckets: {len(groups)} shapes from {shapes[0]} to {shapes[-1]}, "
            f"{len(used):,} of {len(assignment.bucket):,} images, {cut.mean():.1%} cut off (at most {cut.max():.1%})"
        )
        if np.any(scale > 1):
            yield (
                f"buckets: {np.sum(scale > 1):,} images are smaller than their bucket and are enlarged, up to "
                f"{scale.max():.3g} times; small='leave_out' leaves them out"
            )
        rare = [len(group.indices) for group in groups if len(group.indices) < batch_size]
        if rare:
            yield (
                f"buckets: {len(rare)} have fewer images ({sum(rare)} in all) than a batch of {batch_size}, in which "
                "they repeat; rare='leave_out' leaves them out"
            )


LEFT_OUT = -1
"""The number of the bucket of an image that is not used."""


class Group(NamedTuple):
    """The images of one bucket.

    Attributes:
      shape: height and width of the bucket; None for images as they are.
      indices: of its examples, increasing.
    """

    shape: Size | None
    indices: Sequence[int] | Int[np.ndarray, "n"]


@dataclasses.dataclass(frozen=True, eq=False)
class Assignment:
    """The bucket of each of n images.

    Attributes:
      shapes: height and width of each bucket.
      bucket: number of the bucket of each image, `LEFT_OUT` for an image that is not used.
      scale: factor by which height and width are resized; above 1 an image is enlarged.
      cut: fraction of the area of each image that is cut off.
    """

    shapes: tuple[Size, ...]
    bucket: Int[np.ndarray, "n"]
    scale: Float[np.ndarray, "n"]
    cut: Float[np.ndarray, "n"]

    def groups(self) -> list[Group]:
        """The images of each bucket that has any, in the order of `shapes`."""
        every = [Group(shape, np.flatnonzero(self.bucket == i)) for i, shape in enumerate(self.shapes)]
        return [group for group in every if len(group.indices)]


class Chosen:
    """Some of the opened examples of a source, in an order of their own."""

    def __init__(self, examples: Any, indices: Sequence[int] | Int[np.ndarray, "n"]):
        self.image_shape, self.num_classes = examples.image_shape, examples.num_classes
        self._examples, self._indices = examples, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._examples[int(self._indices[index])]
