"""Image files of every kind become arrays with the wanted number of channels."""

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data.image_files import read_image
from jaxdiff.errors import UserError


def test_images_of_every_kind_are_read(tmp_path):
    rng = np.random.default_rng(0)
    rgb, grey = rng.integers(0, 256, (3, 5, 3), np.uint8), rng.integers(0, 256, (3, 5), np.uint8)

    def read(array, channels, name="x.png", mode=None, **options):
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(tmp_path / name, **options)
        return read_image("--image", str(tmp_path / name), channels)

    np.testing.assert_array_equal(read(rgb, 3), rgb)
    np.testing.assert_array_equal(read(grey, 3), grey[..., None].repeat(3, axis=-1))
    np.testing.assert_array_equal(read(grey, 1), grey[..., None])
    np.testing.assert_array_equal(read(rgb, 3, "x.webp", lossless=True), rgb)
    np.testing.assert_array_equal(read(grey.astype(np.uint16) * 257, 1), grey[..., None])
    np.testing.assert_array_equal(read(grey > 127, 1)[..., 0], np.uint8(255) * (grey > 127))
    assert (
        np.abs(
            read(rgb // 4 + 100, 3, "x.jpg", quality=100, subsampling=0).astype(int) - rgb // 4 - 100
        ).mean()
        < 6
    )
    clear = np.dstack([rgb, np.where(np.arange(5) < 2, 0, 255)[None].repeat(3, axis=0).astype(np.uint8)])
    np.testing.assert_array_equal(read(clear, 4), clear)
    np.testing.assert_array_equal(read(np.dstack([grey, clear[..., 3]]), 2), np.dstack([grey, clear[..., 3]]))
    np.testing.assert_array_equal(read(grey, 2), np.dstack([grey, np.full_like(grey, 255)]))
    np.testing.assert_array_equal(read(clear, 3), np.where(clear[..., 3:] == 0, 255, rgb))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was on its side: the first row is the right-hand column
    np.testing.assert_array_equal(read(rgb, 3, exif=turned), np.rot90(rgb, -1))
    with pytest.raises(
        UserError, match="expected an image of 1 to 4 channels, got a condition of 5 channels"
    ):
        read_image("--image", str(tmp_path / "x.png"), 5)
    complete = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(complete[:-30])
    with pytest.raises(
        UserError,
        match=r"--image=.*x.png: expected an image, got a PNG file that is cut short. Fix: give a PNG, JPEG or WEBP",
    ):
        read_image("--image", str(tmp_path / "x.png"), 3)
