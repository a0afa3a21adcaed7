"""Decoding of untrusted image files: upright images uint8, and squares of one size cut from them."""

import contextlib
import dataclasses
import functools
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from jaxdiff.data import images
from jaxdiff.data.quarantine import is_of_a_file
from jaxdiff.errors import UserError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""File name suffix -> Pillow's name of the format."""

MAX_PIXELS = 80_000_000
"""Most pixels of a stored image, unless a limit is given."""

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's mode by number of channels."""

Fit = Literal["halving"] | images.Resampling
"""Resizing method of `square`."""

TRANSPARENT = ("LA", "PA", "RGBA", "La", "RGBa")
OPAQUE = ("1", "L", "P", "RGB", "CMYK", "YCbCr")

OTHER_FORMATS = {
    b"GIF8": "a GIF file",
    b"BM": "a BMP file",
    b"II*\0": "a TIFF file",
    b"MM\0*": "a TIFF file",
    b"\0\0\1\0": "an ICO file",
    b"%PDF": "a PDF file",
    b"<svg": "an SVG file",
    b"<?xml": "an XML file",
    b"<html": "a web page",
    b"<!DOCTYPE": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS in place of the image",
}
"""First bytes -> a file that is no PNG, JPEG or WebP."""

SPECIAL = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""Kinds of path that are not opened: reading a pipe or a device may wait for ever."""

TURNED = (5, 6, 7, 8)
"""EXIF orientations in which height and width change places."""

INSPECTED = 2**26
"""Bytes that are looked at to say what is wrong with a file."""

LONGEST = 8
"""Ratio of the sides from which on `square` cuts an image before it resizes it."""


class Unreadable(Exception):
    """An image file that cannot be decoded; the text is the reason, for ``expected an image, got REASON``."""


@dataclasses.dataclass
class TooLarge(Unreadable):
    """An image file with more pixels than allowed; none is decoded."""

    width: int
    height: int
    max_pixels: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height} pixels, more than {self.max_pixels}"


def decode(path: Path, max_pixels: int = MAX_PIXELS) -> Any:
    """The upright image of a PNG, JPEG or WebP file, with Pillow.

    Orientation follows EXIF, an animation gives its first frame, and 16-bit grey is scaled to 8 bits.

    Raises:
      Unreadable: the path is not that of a file, or the file is not such an image, damaged or too large.
    """
    with _opened(path, max_pixels) as image:
        image.load()
        upright = _eight_bits(_upright(image))
        if upright.mode not in (*OPAQUE, *TRANSPARENT):
            raise Unreadable(f"the colour mode {upright.mode}")
        return upright


def size_of(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of the upright image in a file, from its header: no pixel is decoded.

    Raises:
      Unreadable: as for `decode`; damage behind the header is not noticed.
    """
    version = None
    with contextlib.suppress(OSError, ValueError):  # the reason is that of opening it
        found = os.stat(path)
        version = found.st_mtime_ns, found.st_size
    return _size_of(path, max_pixels, version)


@functools.lru_cache(maxsize=2**20)
def _size_of(path: Path, max_pixels: int, version: Any) -> tuple[int, int]:
    """`size_of`, once for each version of a file: a command needs the sizes of a data set more than once."""
    from PIL import ExifTags, Image

    with _opened(path, max_pixels) as image:
        # Not the method of PNG files, which looks for EXIF data behind the pixels.
        turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in TURNED
        return (image.width, image.height) if turned else (image.height, image.width)


@contextlib.contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Any]:
    """The image of a file whose header is read; any error becomes `Unreadable`."""
    from PIL import Image

    try:
        kind = SPECIAL.get(stat.S_IFMT(os.stat(path).st_mode))
        if kind is not None:
            raise Unreadable(kind)
        with Image.open(path, formats=tuple(set(FORMATS.values()))) as image:
            if image.width * image.height > max_pixels:  # from the header: nothing is decoded yet
                raise TooLarge(image.width, image.height, max_pixels)
            yield image
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # Pillow has no exception class of its own for malformed bytes
        if isinstance(error, OSError) and not is_of_a_file(error):
            raise
        raise Unreadable(_reason(path, error)) from None


def read_image(
    path: Path, name: str, channels: int, background: tuple[int, int, int], max_pixels: int
) -> UInt8[np.ndarray, "height width channels"]:
    """Read an image file as upright grey or RGB, perhaps with alpha, uint8; see `decode`.

    Transparent pixels show `background`, palettes become colours, and CMYK is converted without a colour profile.

    Args:
      path: the file.
      name: name of the file in errors.
      channels: 1 for grey, 3 for RGB; 2 and 4 for the same and alpha, with the colours of transparent pixels.
      background: colour behind transparent pixels.
      max_pixels: most pixels to decode.

    Raises:
      UserError: the file `name` is not an image, damaged, or larger than `max_pixels`.
    """
    fix = "replace or remove the file"
    try:
        image = decode(path, max_pixels)
    except TooLarge as large:
        size, pixels = f"{large.width}x{large.height}", large.width * large.height
        raise UserError(
            f"{name}={size!r}: expected at most max_pixels={max_pixels} pixels, got {pixels}. "
            f"Fix: {fix}, or raise the limit"
        ) from None
    except Unreadable as error:
        raise UserError(f"{name}: expected a readable image, got {error}. Fix: {fix}") from None
    return to_array(image, channels, background)


def to_array(
    image: Any, channels: int, background: tuple[int, int, int] = (255, 255, 255)
) -> UInt8[np.ndarray, "height width channels"]:
    """The bytes of a decoded image; the last of 2 or 4 channels is alpha, otherwise `background` shows through."""
    from PIL import Image

    transparent = image.mode in TRANSPARENT or "transparency" in image.info
    if transparent:
        image = image.convert("RGBA")
    if transparent and channels in (1, 3):
        over, image = image, Image.new("RGBA", image.size, (*background, 255))
        image.alpha_composite(over)
    if not transparent or channels in (1, 3):
        image = image.convert("RGB")  # palettes become colours before they become grey
    levels = np.asarray(image.convert(MODES[channels]))
    return levels.reshape(*levels.shape[:2], channels)


def square(
    image: UInt8[np.ndarray, "height width channels"], size: int, fit: Fit
) -> UInt8[np.ndarray, "size size channels"]:
    """Resize the shorter side to `size` pixels and cut the middle square.

    "halving" averages 2 x 2 pixels while the image is at least twice too large and then resizes bicubically, as ADM
    and EDM prepare ImageNet. The other methods are those of `images.resize`, in one low-passed step.

    A long image is first cut to `LONGEST` times its shorter side, so that its length costs nothing.
    """
    method: images.Resampling = "bicubic" if fit == "halving" else fit
    image = _middle(image)
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


def _middle(image: np.ndarray) -> np.ndarray:
    """The middle of an image, at most `LONGEST` times as long as wide, or one pixel more to keep its centre."""
    longest = LONGEST * min(image.shape[:2])
    top, left = (max(0, (side - longest) // 2) for side in image.shape[:2])
    return image[top : image.shape[0] - top, left : image.shape[1] - left]


def _upright(image: Any) -> Any:
    """The image in its EXIF orientation; unchanged if that cannot be read, as its pixels may still be valid."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # as in `decode`
        return image


def _eight_bits(image: Any) -> Any:
    """16-bit grey with 8 bits: Pillow's own conversion clips."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image).astype(np.int64)
    return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))


def _reason(path: Path, error: Exception) -> str:
    """Why a file could not be decoded, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    try:
        with path.open("rb") as stream:
            content = stream.read(INSPECTED)
    except (OSError, ValueError) as unopened:  # ValueError: a zero byte in the name
        return str(unopened)
    if not content:
        return "an empty file"
    other = next((kind for start, kind in OTHER_FORMATS.items() if content.startswith(start)), None)
    if content[4:8] == b"ftyp":
        other = "an AVIF or HEIC file"
    ours = _format(content)
    if ours is None:
        return other or "other data"
    if "size" in str(error).lower() and "exceeds limit" in str(error):
        return f"a {ours} file of too many pixels ({error})"
    if len(content) < INSPECTED and _is_cut_short(content, ours):
        return f"a {ours} file that is cut short"
    if ours == "PNG" and not _has_valid_checksums(content):
        return "a PNG file with a wrong checksum (CRC): its data are damaged"
    return f"a damaged {ours} file ({' '.join(str(error).split())})"


def _format(content: bytes) -> str | None:
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    return "WEBP" if content.startswith(b"RIFF") and content[8:12] == b"WEBP" else None


def _is_cut_short(content: bytes, kind: str) -> bool:
    """Whether the end that each format marks is missing."""
    if kind == "WEBP":
        return len(content) < 8 + int.from_bytes(content[4:8], "little")
    return (b"IEND" if kind == "PNG" else b"\xff\xd9") not in content


def _has_valid_checksums(content: bytes) -> bool:
    position = 8
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        end = position + 8 + length
        if zlib.crc32(content[position + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            return False
        position = end + 4
    return True
