"""Image files: PNG, JPEG and WebP as arrays of bytes."""

import numpy as np
from jaxtyping import UInt8

from jaxdiff.errors import UserError, expect

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's mode by number of channels."""


def read_image(name: str, path: str, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    """Read an image file with a number of channels, rotated as its EXIF data say.

    The last of 2 or 4 channels is alpha. With 1 or 3 channels, transparent pixels become white.

    Args:
      name: the flag or field that gives the file, for messages.
      path: of the file.
      channels: 1 to 4.

    Raises:
      UserError: the file is missing or not an image; or the number of channels has no file format.
    """
    from PIL import Image, ImageOps

    fix, got = "give the values in Python", f"a condition of {channels} channels"
    expect(channels in MODES, name, path, "an image of 1 to 4 channels", fix, got)
    try:
        with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
                image = Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8))
            if channels in (1, 3) and image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            array = np.asarray(image.convert(MODES[channels]))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        why = getattr(error, "strerror", None) or "other data"
        raise UserError(
            f"{name}={path}: expected an image, got {why}. Fix: give a PNG, JPEG or WEBP file"
        ) from None
    return array.reshape(*array.shape[:2], channels)
