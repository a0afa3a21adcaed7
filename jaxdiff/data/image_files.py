"""Image files that users name: PNG, JPEG and WebP as arrays of bytes."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxdiff.data.decoding import MODES, Unreadable, decode, to_array
from jaxdiff.errors import UserError, expect


def read_image(name: str, path: str, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    """Read an image file with a number of channels, rotated as its EXIF data say.

    The last of 2 or 4 channels is alpha. With 1 or 3 channels, transparent pixels become white.

    Args:
      name: the flag or field that gives the file, for messages.
      path: of the file.
      channels: 1 to 4.

    Raises:
      UserError: the file is missing, not an image, or too large; or the number of channels has no file format.
    """
    fix, got = "give the values in Python", f"a condition of {channels} channels"
    expect(channels in MODES, name, path, "an image of 1 to 4 channels", fix, got)
    try:
        return to_array(decode(Path(path)), channels)
    except Unreadable as error:
        raise UserError(
            f"{name}={path}: expected an image, got {error}. Fix: give a PNG, JPEG or WEBP file"
        ) from None
