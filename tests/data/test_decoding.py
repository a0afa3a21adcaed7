"""Decoded images have the pixels that an image viewer shows, cut to squares."""

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data.decoding import square
from jaxdiff.data.folder import ImageFolder
from jaxdiff.errors import UserError
from tests.data.pixels import noise


def read(path, size=8, **options):
    return ImageFolder(str(path), size, label=None, **options).open()[0]["image"]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 90), (90, 40), (16, 16), (9, 20), (4, 4)])
@pytest.mark.parametrize("fit", ["halving", "area", "bicubic"])
def test_a_linear_ramp_stays_itself_in_the_middle(height, width, fit):
    # Every low-pass filter keeps a linear ramp: its centre stays, and its slope grows with the pixels.
    y, x = np.mgrid[:height, :width] + 0.5
    slope = 200 / max(height, width)
    ramp = np.stack([128 + slope * (x - width / 2), 128 + slope * (y - height / 2)] * 2, axis=-1)[..., :3]
    image = square(np.rint(ramp).astype(np.uint8), 8, fit)
    v, u = (np.mgrid[:8, :8] - 3.5) * slope * min(height, width) / 8
    middle = slice(2, 6) if fit != "area" or height > 16 else slice(3, 5)
    off = np.stack([u, v, u], axis=-1)[middle, middle] + 128 - image[middle, middle]
    assert image.shape == (8, 8, 3)
    assert np.abs(off).max() < 2 + slope * min(height, width) / 16


def test_halving_is_means_of_squares():
    image = noise(32, 32)
    first = np.rint(image.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3)))
    second = np.rint(first.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3)))
    assert np.array_equal(square(image, 8, "halving"), second)


def test_an_image_of_the_target_size_is_only_cropped_to_its_middle():
    image = noise(8, 14)
    assert np.array_equal(square(image, 8, "halving"), image[:, 3:11])
    assert np.array_equal(square(image.transpose(1, 0, 2), 8, "area"), image.transpose(1, 0, 2)[3:11])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_of_png_has_its_colours(tmp_path, mode, channels):
    grey = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
    alpha = np.linspace(255, 0, 64).round().astype(np.uint8).reshape(8, 8)
    rgb = noise(8, 8)
    expected = grey[..., None].repeat(3, axis=-1).astype(float)
    if mode == "1":
        image = Image.fromarray(grey > 100)
        expected = np.where(grey > 100, 255.0, 0)[..., None].repeat(3, axis=-1)
    elif mode == "I;16":
        image = Image.fromarray(np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8))
        expected = np.linspace(0, 255, 64).reshape(8, 8, 1).repeat(3, axis=-1)
    elif mode == "P":
        image = Image.fromarray(rgb).quantize(64, method=Image.Quantize.FASTOCTREE)
        expected = np.asarray(image.getpalette()).reshape(-1, 3)[np.asarray(image)].astype(float)
    elif mode == "L":
        image = Image.fromarray(grey)
    elif mode == "LA":
        image = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))
    else:
        image, expected = Image.fromarray(rgb), rgb.astype(float)
        if mode == "RGBA":
            image.putalpha(Image.fromarray(alpha))
    if mode in ("LA", "RGBA"):
        opacity = alpha[..., None] / 255
        expected = opacity * expected + (1 - opacity) * np.array((10, 200, 90))
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as written:
        assert written.mode == mode
    found = read(tmp_path, channels=channels, background=(10, 200, 90))
    if channels == 1:
        expected = (expected @ (0.299, 0.587, 0.114))[..., None]
    assert found.shape == (8, 8, channels)
    rounding = 1.01 if mode in ("LA", "RGBA") or channels == 1 else 0.51
    assert np.abs(found - expected).max() <= rounding


def test_a_palette_may_have_a_transparent_entry(tmp_path):
    image = Image.fromarray(np.array([[0, 1]] * 2, np.uint8), mode=None).convert("P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=1)
    assert read(tmp_path, 2, background=(1, 2, 3)).tolist() == [[[255, 0, 0], [1, 2, 3]]] * 2


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.webp"])
def test_other_formats_are_read(tmp_path, name):
    y, x = np.mgrid[:16, :16] * 8
    image = np.stack([x + 60, y + 60, 200 - x], axis=-1).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / name, quality=95)
    assert np.abs(read(tmp_path, 16).astype(int) - image).mean() < 6


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read(tmp_path).astype(int) - (255, 0, 0)).max() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path, orientation):
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4, :4], upright[:4, 4:], upright[4:, :4] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    # The stored image of each EXIF orientation; applying the orientation gives the upright image.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path), upright)


def test_max_pixels_limits_the_stored_image(tmp_path):
    Image.new("RGB", (9, 10)).save(tmp_path / "a.png")
    assert read(tmp_path, max_pixels=90).shape == (8, 8, 3)
    with pytest.raises(
        UserError, match=r"a\.png='9x10': .*at most max_pixels=89 pixels, got 90.*raise the limit"
    ):
        read(tmp_path, max_pixels=89)
