"""Masks of what is unknown, and images in which it is hidden: the conditions of inpainting and outpainting.

An image of which a part is known has alpha as its last channel: `KNOWN` or `UNKNOWN`. `PartialImage` reads it so.
"""

import dataclasses
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32

from jaxdiff.data import images
from jaxdiff.data.degradations import Degradation, Picture
from jaxdiff.errors import UserError, require

KNOWN, UNKNOWN = 1.0, -1.0
Hidden = Bool[np.ndarray, "height width"]


@runtime_checkable
class Mask(Protocol):
    """Where an image of this size is unknown."""

    def __call__(self, height: int, width: int, rng: np.random.Generator) -> Hidden: ...


@dataclasses.dataclass(frozen=True)
class BoxMask:
    """A rectangle somewhere in the image.

    Attributes:
      side: range of its sides, as shares of the image's, drawn for each of the two by itself.
    """

    side: tuple[float, float] = (0.25, 0.5)

    def __post_init__(self):
        fits = len(self.side) == 2 and 0 < self.side[0] <= self.side[1] <= 1
        require(fits, "side", self.side, "this is no range of shares", "give 0 < lowest <= highest <= 1")

    def __call__(self, height: int, width: int, rng: np.random.Generator) -> Hidden:
        hidden = np.zeros((height, width), bool)
        rows, columns = (max(1, round(side * rng.uniform(*self.side))) for side in (height, width))
        top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
        hidden[top : top + rows, left : left + columns] = True
        return hidden


@dataclasses.dataclass(frozen=True)
class FreeFormMask:
    """Strokes of a round brush, after Yu et al. 2019, "Free-Form Image Inpainting with Gated Convolution", section 3.4.

    A stroke starts anywhere, and turns at each vertex to alternating sides, as a hand does. Lengths and widths are
    shares of the image's longer side; the paper gives pixels, and its ranges for them are not used here.

    Attributes:
      strokes: range of their number, both ends included.
      vertices: range of the number of turns of a stroke, both ends included.
      length: range of the way between two turns.
      brush: range of a stroke's width.
    """

    strokes: tuple[int, int] = (1, 4)
    vertices: tuple[int, int] = (2, 8)
    length: tuple[float, float] = (0.05, 0.25)
    brush: tuple[float, float] = (0.05, 0.15)

    def __post_init__(self):
        for field in ("strokes", "vertices", "length", "brush"):
            value = getattr(self, field)
            fits = len(value) == 2 and 0 < value[0] <= value[1]
            require(fits, field, value, "this is no range", "give 0 < lowest <= highest")

    def __call__(self, height: int, width: int, rng: np.random.Generator) -> Hidden:
        from PIL import Image, ImageDraw

        side = max(height, width)
        canvas = Image.new("1", (width, height))
        draw = ImageDraw.Draw(canvas)
        for _ in range(rng.integers(self.strokes[0], self.strokes[1] + 1)):
            place = rng.uniform((0, 0), (width, height))
            base, brush = rng.uniform(0, 2 * np.pi), side * rng.uniform(*self.brush)
            _dot(draw, place, brush)
            for i in range(rng.integers(self.vertices[0], self.vertices[1] + 1)):
                # Turns of 60 to 144 degrees, to one side and back to the other: strokes zigzag about `base`.
                angle = base + (-1) ** i * rng.uniform(np.pi / 6, 2 * np.pi / 5)
                way = side * rng.uniform(*self.length) * np.array((np.cos(angle), np.sin(angle)))
                last, place = place, np.clip(place + way, 0, (width, height))
                draw.line((*last, *place), fill=1, width=max(1, round(brush)))
                _dot(draw, place, brush)
        return np.asarray(canvas).astype(bool)


@dataclasses.dataclass(frozen=True)
class Uncrop:
    """One side of the image, or all four, each kind half of the time (Saharia et al. 2021, "Palette", section 4.3).

    Attributes:
      share: of the pixels that are unknown, to within a row or column.
      four_sides: how often a margin on all four sides is hidden, rather than one side.
    """

    share: float = 0.5
    four_sides: float = 0.5

    def __post_init__(self):
        require(
            0 < self.share < 1, "share", self.share, "nothing or all would be hidden", "give 0 < share < 1"
        )
        fits = 0 <= self.four_sides <= 1
        require(fits, "four_sides", self.four_sides, "it is a probability", "give a number from 0 to 1")

    def __call__(self, height: int, width: int, rng: np.random.Generator) -> Hidden:
        around, side = rng.random() < self.four_sides, int(rng.integers(4))
        hidden = np.ones((height, width), bool)
        if around:
            rows, columns = (max(1, round(size * np.sqrt(1 - self.share))) for size in (height, width))
            top, left = (height - rows) // 2, (width - columns) // 2
            hidden[top : top + rows, left : left + columns] = False
            return hidden
        turned = np.rot90(hidden, side)  # a view: what it loses, `hidden` loses
        turned[: max(1, round(len(turned) * (1 - self.share)))] = False
        return hidden


@dataclasses.dataclass(frozen=True)
class OneOf:
    """A mask of one kind or another, each equally often."""

    masks: tuple[Mask, ...]

    def __post_init__(self):
        require(len(self.masks) > 0, "masks", self.masks, "there is no choice", "give at least one")

    def __call__(self, height: int, width: int, rng: np.random.Generator) -> Hidden:
        return self.masks[rng.integers(len(self.masks))](height, width, rng)


@dataclasses.dataclass(frozen=True)
class Masked:
    """The image with what a mask hides filled, as floats from -1 to 1, and alpha as one more channel.

    Attributes:
      mask: what is hidden.
      fill: "noise" is standard Gaussian, as in Palette (Saharia et al. 2021, section 4.3), and may leave [-1, 1]; or
        a number.
      channel: whether the mask is told, in a last channel: 1 where the image is known, else -1.
    """

    mask: Mask
    fill: Literal["noise"] | float = "noise"
    channel: bool = True

    def __call__(
        self, image: Picture, rng: np.random.Generator
    ) -> Float32[np.ndarray, "height width channels_"]:
        height, width, _ = image.shape
        hidden = self.mask(height, width, rng)[..., None]
        fill = rng.standard_normal(image.shape, np.float32) if self.fill == "noise" else np.float32(self.fill)
        shown = np.where(hidden, fill, images.to_float(image))
        alpha = np.where(hidden, UNKNOWN, KNOWN)
        return np.concatenate([shown, alpha], axis=-1, dtype=np.float32) if self.channel else shown


@dataclasses.dataclass(frozen=True)
class Hint:
    """What a degradation has left of an image, as floats from -1 to 1, of which no pixel counts as known.

    Beside `Masked` images in a `Choice`, one model learns to complete images and to restore them.

    Attributes:
      degradation: it keeps the size; one channel stands for all of the image's.
    """

    degradation: Degradation

    def __call__(
        self, image: Picture, rng: np.random.Generator
    ) -> Float32[np.ndarray, "height width channels_"]:
        left = self.degradation(image, rng)
        if left.shape[:2] != image.shape[:2] or left.shape[2] not in (1, image.shape[2]):
            raise UserError(
                f"degradation={self.degradation!r}: it makes {list(left.shape)} of {list(image.shape)}. "
                "Fix: use one that keeps the size of an image, and its channels or a single one"
            )
        colours = np.broadcast_to(images.to_float(left) if left.dtype == np.uint8 else left, image.shape)
        alpha = np.full((*image.shape[:2], 1), UNKNOWN)
        return np.concatenate([colours, alpha], axis=-1, dtype=np.float32)


def _dot(draw, place: np.ndarray, width: float) -> None:
    (x, y), radius = place, width / 2
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
