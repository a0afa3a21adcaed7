"""Masks of unknown pixels and masked images: the conditions of inpainting and outpainting.

A partly known image has alpha as its last channel, `KNOWN` or `UNKNOWN`, which `PartialImage` reads.
"""

import dataclasses
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32

from jaxdiff.data import images
from jaxdiff.data.degradations import Degradation, ImageArray
from jaxdiff.errors import UserError, between, expect

KNOWN, UNKNOWN = 1.0, -1.0
Hidden = Bool[np.ndarray, "height width"]


@runtime_checkable
class Mask(Protocol):
    """Random mask: returns True where an image of this size is unknown."""

    def __call__(self, height: int, width: int, rng: np.random.Generator) -> Hidden: ...


@dataclasses.dataclass(frozen=True)
class BoxMask:
    """Hides a rectangle anywhere in the image.

    Attributes:
      side: range of its height and width, drawn independently, as fractions of the image's.
    """

    side: tuple[float, float] = (0.25, 0.5)

    def __post_init__(self):
        fits = len(self.side) == 2 and 0 < self.side[0] <= self.side[1] <= 1
        expect(fits, "side", self.side, "a range of fractions", "give 0 < lowest <= highest <= 1")

    def __call__(self, height: int, width: int, rng: np.random.Generator) -> Hidden:
        hidden = np.zeros((height, width), bool)
        rows, columns = (max(1, round(side * rng.uniform(*self.side))) for side in (height, width))
        top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
        hidden[top : top + rows, left : left + columns] = True
        return hidden


@dataclasses.dataclass(frozen=True)
class FreeFormMask:
    """Hides strokes of a round brush (Yu et al. 2019, "Free-Form Image Inpainting with Gated Convolution", sec. 3.4).

    A stroke starts anywhere and turns to alternating sides at its vertices. Lengths and widths are fractions of the
    image's longer side; the paper gives them in pixels, and its ranges are not used here.

    Attributes:
      strokes: range of the number of strokes, both ends included.
      vertices: range of the number of turns of a stroke, both ends included.
      length: range of the distance between two turns.
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
            expect(fits, field, value, "a range of numbers > 0", "give 0 < lowest <= highest")

    def __call__(self, height: int, width: int, rng: np.random.Generator) -> Hidden:
        from PIL import Image, ImageDraw

        side = max(height, width)
        canvas = Image.new("1", (width, height))
        draw = ImageDraw.Draw(canvas)
        for _ in range(rng.integers(self.strokes[0], self.strokes[1] + 1)):
            point = rng.uniform((0, 0), (width, height))
            base, brush = rng.uniform(0, 2 * np.pi), side * rng.uniform(*self.brush)
            _dot(draw, point, brush)
            for i in range(rng.integers(self.vertices[0], self.vertices[1] + 1)):
                # Turns of 60 to 144 degrees, to one side and back to the other: strokes zigzag about `base`.
                angle = base + (-1) ** i * rng.uniform(np.pi / 6, 2 * np.pi / 5)
                move = side * rng.uniform(*self.length) * np.array((np.cos(angle), np.sin(angle)))
                last, point = point, np.clip(point + move, 0, (width, height))
                draw.line((*last, *point), fill=1, width=max(1, round(brush)))
                _dot(draw, point, brush)
        return np.asarray(canvas).astype(bool)


@dataclasses.dataclass(frozen=True)
class Uncrop:
    """Hides one side of the image or a margin on all four: outpainting (Saharia et al. 2021, "Palette", section 4.3).

    Attributes:
      fraction: fraction of hidden pixels, in (0, 1), up to one row or column.
      four_sides: probability of a margin on all four sides instead of one side.
    """

    fraction: float = 0.5
    four_sides: float = 0.5

    def __post_init__(self):
        between(self, "fraction", 0.0, 1.0, open_low=True, open_high=True)
        between(self, "four_sides", 0.0, 1.0)

    def __call__(self, height: int, width: int, rng: np.random.Generator) -> Hidden:
        around, side = rng.random() < self.four_sides, int(rng.integers(4))
        hidden = np.ones((height, width), bool)
        if around:
            rows, columns = (max(1, round(size * np.sqrt(1 - self.fraction))) for size in (height, width))
            top, left = (height - rows) // 2, (width - columns) // 2
            hidden[top : top + rows, left : left + columns] = False
            return hidden
        turned = np.rot90(hidden, side)  # a view of `hidden`
        turned[: max(1, round(len(turned) * (1 - self.fraction)))] = False
        return hidden


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Draws one of several masks, each with equal probability."""

    masks: tuple[Mask, ...]

    def __post_init__(self):
        expect(len(self.masks) > 0, "masks", self.masks, "at least one mask", "give one")

    def __call__(self, height: int, width: int, rng: np.random.Generator) -> Hidden:
        return self.masks[rng.integers(len(self.masks))](height, width, rng)


@dataclasses.dataclass(frozen=True)
class Masked:
    """Fills the hidden pixels of an image, as floats in [-1, 1], and appends alpha as a channel.

    Attributes:
      mask: the mask of hidden pixels.
      fill: "noise" for standard Gaussian noise, which may leave [-1, 1], as in Palette (Saharia et al. 2021, section
        4.3); or a number.
      channel: whether to append alpha, 1 where the image is known and -1 elsewhere, as the last channel.
    """

    mask: Mask
    fill: Literal["noise"] | float = "noise"
    channel: bool = True

    def __call__(
        self, image: ImageArray, rng: np.random.Generator
    ) -> Float32[np.ndarray, "height width channels_"]:
        height, width, _ = image.shape
        hidden = self.mask(height, width, rng)[..., None]
        fill = rng.standard_normal(image.shape, np.float32) if self.fill == "noise" else np.float32(self.fill)
        masked = np.where(hidden, fill, images.to_float(image))
        alpha = np.where(hidden, UNKNOWN, KNOWN)
        return np.concatenate([masked, alpha], axis=-1, dtype=np.float32) if self.channel else masked


@dataclasses.dataclass(frozen=True)
class Hint:
    """A degraded image as floats in [-1, 1], with an alpha channel that marks every pixel as unknown.

    With `Masked` in the same `Choice`, one model learns both inpainting and restoration.

    Attributes:
      degradation: a degradation that keeps height and width; a single channel is repeated for all channels.
    """

    degradation: Degradation

    def __call__(
        self, image: ImageArray, rng: np.random.Generator
    ) -> Float32[np.ndarray, "height width channels_"]:
        hint = self.degradation(image, rng)
        if hint.shape[:2] != image.shape[:2] or hint.shape[2] not in (1, image.shape[2]):
            raise UserError(
                f"degradation={self.degradation!r}: expected {list(image.shape)} or a single channel, got "
                f"{list(hint.shape)}. Fix: use a degradation that keeps height and width"
            )
        colours = np.broadcast_to(images.to_float(hint) if hint.dtype == np.uint8 else hint, image.shape)
        alpha = np.full((*image.shape[:2], 1), UNKNOWN)
        return np.concatenate([colours, alpha], axis=-1, dtype=np.float32)


def _dot(draw, centre: np.ndarray, width: float) -> None:
    (x, y), radius = centre, width / 2
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
