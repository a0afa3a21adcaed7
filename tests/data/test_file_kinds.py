"""One decoder for all image files: what it refuses it names, and no shape of image costs much."""

import io
import os
import resource
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data.decoding import LONGEST, Unreadable, decode, square
from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.image_files import read_image
from jaxdiff.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def encoded(kind, **options):
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, kind, **options)
    return stream.getvalue()


def with_chunk(kind, data, crc=None):
    """A PNG with one more chunk after its header."""
    content = encoded("PNG")
    crc = zlib.crc32(kind + data) if crc is None else crc
    chunk = len(data).to_bytes(4, "big") + kind + data + crc.to_bytes(4, "big")
    return content[:33] + chunk + content[33:]


def large(width, height):
    """A PNG of a few bytes whose header declares many pixels."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 2, 0, 0, 0))
    chunks = (b"IHDR" + header, b"IDAT", b"IEND")
    framed = ((len(c) - 4).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def damaged_header():
    content = bytearray(encoded("PNG"))
    content[29] ^= 1  # in the checksum of the header
    return bytes(content)


REASONS = {
    "empty": (b"", "an empty file"),
    "text": (b"not an image", "other data"),
    "web page": (b"<!DOCTYPE html>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "GIF": (encoded("GIF"), "a GIF file"),
    "BMP": (encoded("BMP"), "a BMP file"),
    "TIFF": (encoded("TIFF"), "a TIFF file"),
    "cut PNG": (encoded("PNG")[:-30], "a PNG file that is cut short"),
    "cut JPEG": (encoded("JPEG")[:-200], "a JPEG file that is cut short"),
    "cut WebP": (encoded("WEBP", lossless=True)[:-100], "a WEBP file that is cut short"),
    "checksum": (damaged_header(), r"a PNG file with a wrong checksum \(CRC\)"),
    "bomb": (with_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(200_000_000), 9)), "PNG file"),
}


@pytest.mark.parametrize(("content", "reason"), REASONS.values(), ids=REASONS)
def test_every_reader_names_what_a_file_is(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(
        UserError, match=rf"^a\.png: expected a readable image, got .*{reason}.*\. Fix"
    ) as error:
        ImageFolder(str(tmp_path), 8, label=None).open()[0]
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(
        UserError, match=rf"^--known=.*a\.png: expected an image, got .*{reason}.*\. Fix: give a PNG"
    ):
        read_image("--known", str(tmp_path / "a.png"), 3)


def test_images_of_too_many_pixels_are_not_decoded(tmp_path):
    (tmp_path / "a.png").write_bytes(large(9000, 9000))
    with pytest.raises(UserError, match=r"got 9000x9000 pixels, more than 80000000"):
        read_image("--known", str(tmp_path / "a.png"), 3)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
def test_pipes_devices_and_folders_are_not_opened(tmp_path, kind):
    """Reading a pipe waits until something writes to it."""
    path = tmp_path / "a.png"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(UserError, match=f"expected a readable image, got {kind}"):
        ImageFolder(str(tmp_path), 8, label=None).open()[0]
    with pytest.raises(UserError, match=f"expected an image, got {kind}"):
        read_image("--image low", str(path), 3)


def test_a_link_to_itself_is_named(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(Unreadable, match="Too many levels of symbolic links"):
        decode(tmp_path / "a.png")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_conditions_have_the_channels_that_are_asked_for(tmp_path, mode, channels):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (3, 2), (255, 255, 255)).convert(mode).save(tmp_path / f"a.{suffix}", quality=100)
    found = read_image("--image", str(tmp_path / f"a.{suffix}"), channels)
    assert found.shape == (2, 3, channels)
    assert found[..., 0].min() >= 253
    if channels in (2, 4):
        assert np.all(found[..., -1] == 255)


@pytest.mark.parametrize(("height", "width"), [(1, 60000), (60000, 1), (2, 30001)])
@pytest.mark.parametrize("fit", ["halving", "lanczos"])
def test_a_thin_image_costs_no_more_than_a_square_one(height, width, fit):
    image = np.zeros((height, width, 3), np.uint8)
    middle = slice((height - 1) // 2, height // 2 + 1), slice((width - 1) // 2, width // 2 + 1)
    image[middle] = 200
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    found = square(image, 256, fit)
    assert time.perf_counter() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"
    assert found.shape == (256, 256, 3)
    assert found[128, 128, 0] > 150, "the middle stays the middle"


@pytest.mark.parametrize("fit", ["halving", "area", "bicubic", "lanczos"])
def test_cutting_first_hardly_changes_a_smooth_image(fit):
    """Two images that continue each other: one just below the ratio that is cut, one far above it."""
    y, x = np.mgrid[:40, : 40 * LONGEST * 3]
    long = (
        (128 + 100 * np.sin((x - x.shape[1] / 2) / 15) * np.cos(y / 15)).round().astype(np.uint8)[..., None]
    )
    start = (long.shape[1] - 40 * LONGEST) // 2
    short = long[:, start : start + 40 * LONGEST]
    assert np.abs(square(long, 16, fit).astype(int) - square(short, 16, fit)).max() <= 1
