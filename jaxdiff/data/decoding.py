"""Image files of any origin as squares of bytes: what they hold is looked at before it is believed."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from jaxdiff.data import images
from jaxdiff.errors import UserError, require

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""What is read, by the ends of names."""

Fit = Literal["halving"] | images.Resampling
"""How a picture is resized, see `square`."""

TRANSPARENT = ("LA", "PA", "RGBA", "La", "RGBa")
CLEAR = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr")


def read_image(
    path: Path, name: str, channels: Literal[1, 3], background: tuple[int, int, int], max_pixels: int
) -> UInt8[np.ndarray, "height width channels"]:
    """A file's picture, upright: grey or RGB, whatever it is stored as.

    Orientation follows EXIF, transparent pixels show `background`, palettes become colours, 16-bit grey is scaled to
    8 bits, CMYK is converted without a colour profile, and of a moving picture the first frame is taken.

    Raises:
      UserError: about the file `name`: it is no image, is cut off, too large, or of a kind that has no clear colours.
    """
    from PIL import Image

    fix = "replace or remove the file"
    try:
        with Image.open(path, formats=tuple(set(FORMATS.values()))) as image:
            pixels = image.width * image.height  # told by the header: nothing is decoded yet
            require(pixels <= max_pixels, name, f"{image.width}x{image.height}",
                    f"more than max_pixels={max_pixels}", f"{fix}, or raise the limit")  # fmt: skip
            image.load()
            return _flat(_upright(image), name, channels, background)
    except (UserError, MemoryError):
        raise
    except (
        Exception
    ) as error:  # whatever Pillow stumbles over in a file's bytes: it has no error of its own for that
        raise UserError(f"{name}: it cannot be read: {error}. Fix: {fix}") from None


def square(
    picture: UInt8[np.ndarray, "height width channels"], size: int, fit: Fit
) -> UInt8[np.ndarray, "size size channels"]:
    """The middle of a picture whose shorter side is made `size` pixels long.

    "halving" takes means of 2 x 2 pixels while the picture is at least twice too large and then resizes bicubically,
    as ADM and EDM prepare ImageNet; all others are those of `images.resize`, low-passed in one go.
    """
    method: images.Resampling = "bicubic" if fit == "halving" else fit
    while fit == "halving" and min(picture.shape[:2]) >= 2 * size:
        height, width, channels = picture.shape
        even = picture[: height // 2 * 2, : width // 2 * 2]
        means = even.reshape(height // 2, 2, width // 2, 2, channels).mean(axis=(1, 3))
        picture = np.rint(means).astype(np.uint8)
    height, width, _ = picture.shape
    scale = size / min(height, width)
    if scale != 1:
        picture = images.resize(picture, (round(height * scale), round(width * scale)), method)
    top, left = (picture.shape[0] - size) // 2, (picture.shape[1] - size) // 2
    return picture[top : top + size, left : left + size]


def _upright(image: Any) -> Any:
    """Turned as its EXIF says; as it is where that cannot be read, which says nothing about the pixels."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # as above: Pillow has no error of its own for such bytes
        return image


def _flat(image: Any, name: str, channels: int, background: tuple[int, int, int]) -> np.ndarray:
    """Any mode of PNG, JPEG and WebP as uint8 [height, width, channels]."""
    from PIL import Image

    if image.mode.startswith("I"):  # Pillow's own conversion would clip 16 bits to 8
        levels = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    require(image.mode in (*CLEAR, *TRANSPARENT), name, image.mode, "such pixels have no clear colours",
            "convert it to RGB")  # fmt: skip
    if image.mode in TRANSPARENT or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.new("RGBA", over.size, (*background, 255))
        image.alpha_composite(over)
    image = image.convert("RGB")
    levels = np.asarray(image.convert("L") if channels == 1 else image)
    return levels.reshape(*levels.shape[:2], channels)
