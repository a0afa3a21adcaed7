"""Decoding of untrusted image files: upright grey or RGB images uint8, cut to squares of one size."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from jaxdiff.data import images
from jaxdiff.errors import UserError, expect

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""File name suffix -> Pillow's name of the format."""

Fit = Literal["halving"] | images.Resampling
"""Resizing method of `square`."""

TRANSPARENT = ("LA", "PA", "RGBA", "La", "RGBa")
OPAQUE = ("1", "L", "P", "RGB", "CMYK", "YCbCr")


def read_image(
    path: Path, name: str, channels: Literal[1, 3], background: tuple[int, int, int], max_pixels: int
) -> UInt8[np.ndarray, "height width channels"]:
    """Read an image file as upright grey or RGB, uint8.

    Orientation follows EXIF, transparent pixels show `background`, palettes become colours, 16-bit grey is scaled to
    8 bits, CMYK is converted without a colour profile, and an animation gives its first frame.

    Args:
      path: the file.
      name: name of the file in errors.
      channels: 1 for grey, 3 for RGB.
      background: colour behind transparent pixels.
      max_pixels: most pixels to decode.

    Raises:
      UserError: the file `name` is not an image, truncated, larger than `max_pixels`, or in an unsupported colour mode.
    """
    from PIL import Image

    fix = "replace or remove the file"
    try:
        with Image.open(path, formats=tuple(set(FORMATS.values()))) as image:
            pixels = image.width * image.height  # from the header: nothing is decoded yet
            size, expected = f"{image.width}x{image.height}", f"at most max_pixels={max_pixels} pixels"
            expect(pixels <= max_pixels, name, size, expected, f"{fix}, or raise the limit", str(pixels))
            image.load()
            return _flat(_upright(image), name, channels, background)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # Pillow has no exception class of its own for malformed bytes
        raise UserError(f"{name}: expected a readable image, got {error}. Fix: {fix}") from None


def square(
    image: UInt8[np.ndarray, "height width channels"], size: int, fit: Fit
) -> UInt8[np.ndarray, "size size channels"]:
    """Resize the shorter side to `size` pixels and cut the middle square.

    "halving" averages 2 x 2 pixels while the image is at least twice too large and then resizes bicubically, as ADM
    and EDM prepare ImageNet. The other methods are those of `images.resize`, in one low-passed step.
    """
    method: images.Resampling = "bicubic" if fit == "halving" else fit
    while fit == "halving" and min(image.shape[:2]) >= 2 * size:
        height, width, channels = image.shape
        even = image[: height // 2 * 2, : width // 2 * 2]
        means = even.reshape(height // 2, 2, width // 2, 2, channels).mean(axis=(1, 3))
        image = np.rint(means).astype(np.uint8)
    height, width, _ = image.shape
    scale = size / min(height, width)
    if scale != 1:
        image = images.resize(image, (round(height * scale), round(width * scale)), method)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def _upright(image: Any) -> Any:
    """The image in its EXIF orientation; unchanged if that cannot be read, as its pixels may still be valid."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # as in `read_image`
        return image


def _flat(image: Any, name: str, channels: int, background: tuple[int, int, int]) -> np.ndarray:
    """Convert any colour mode of PNG, JPEG and WebP to uint8 [height, width, channels]."""
    from PIL import Image

    if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bits to 8
        levels = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    modes = (*OPAQUE, *TRANSPARENT)
    expect(image.mode in modes, name, image.mode, f"a colour mode of {', '.join(modes)}", "convert it to RGB")
    if image.mode in TRANSPARENT or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.new("RGBA", over.size, (*background, 255))
        image.alpha_composite(over)
    image = image.convert("RGB")
    levels = np.asarray(image.convert("L") if channels == 1 else image)
    return levels.reshape(*levels.shape[:2], channels)
