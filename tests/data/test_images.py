"""uint8 and float conversions are inverse; grids place images in reading order."""

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data import images
from jaxdiff.errors import UserError


def noise(n, height, width, channels):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, channels), np.uint8)


def test_all_256_levels_survive_the_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    floats = images.to_float(levels)
    assert floats.dtype == np.float32
    assert (floats.min(), floats.max()) == (-1, 1)
    assert np.array_equal(images.to_uint8(floats), levels)


def test_bytes_are_the_nearest_level_and_clipped():
    assert images.to_uint8(np.float32([[-9, -1, 0.0039, 1, 9]])).tolist() == [[0, 0, 128, 255, 255]]
    values = np.linspace(-1, 1, 1001, dtype=np.float32)[None]
    back = images.to_float(images.to_uint8(values))
    assert np.abs(back - values).max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_is_named(bad):
    floats = np.zeros((5, 4, 4, 3), np.float32)
    floats[3, 1, 2, 0] = bad
    with pytest.raises(UserError, match=r"images\[3\].*1 of 5"):
        images.to_uint8(floats)


def test_grid_holds_every_image_in_reading_order():
    pixels = noise(5, 4, 6, 3)
    result = images.grid(pixels, columns=3, scale=1)
    assert result.shape == (2 * 4 + 1, 3 * 6 + 2, 3)
    for i, image in enumerate(pixels):
        y, x = i // 3 * 5, i % 3 * 7
        assert np.array_equal(result[y : y + 4, x : x + 6], image)
    assert (result[5:, 14:] == 255).all(), "the sixth cell is blank"


def test_scale_repeats_pixels():
    pixels = noise(1, 3, 5, 1)
    result = images.grid(pixels, columns=1, scale=4)
    assert np.array_equal(result[::4, ::4], pixels[0])
    assert np.array_equal(result, np.kron(pixels[0, :, :, 0], np.ones((4, 4), np.uint8))[..., None])


@pytest.mark.parametrize("channels", [1, 3])
def test_labels_are_left_and_above_and_change_no_image(channels):
    pixels = noise(6, 8, 8, channels)
    plain = images.grid(pixels, columns=3)
    labelled = images.grid(pixels, 3, row_labels=["cats", "dogs"], column_labels=["a", "b", "c"])
    height, width = plain.shape[:2]
    assert np.array_equal(labelled[-height:, -width:], plain)
    left, top = labelled[-height:, :-width], labelled[:-height, -width:]
    assert left[: height // 2].min() < 128 < left.mean(), "ink left of the first row"
    assert left[height // 2 :].min() < 128, "ink left of the second row"
    for i in range(3):
        assert top[:, i * width // 3 : (i + 1) * width // 3].min() < 128, "ink above each column"
    assert labelled.shape[-1] == channels


@pytest.mark.parametrize("channels", [1, 3])
def test_png_keeps_every_pixel_for_any_file_name(tmp_path, channels):
    result = noise(1, 7, 9, channels)[0]
    images.save_png(tmp_path / ".x.png.partial", result)
    read = np.asarray(Image.open(tmp_path / ".x.png.partial"))
    assert np.array_equal(read.reshape(result.shape), result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": noise(4, 8, 8, 1), "columns": 0}, "columns"),
        ({"images": noise(4, 8, 8, 2), "columns": 2}, "channels"),
        ({"images": noise(4, 8, 8, 1)[:0], "columns": 2}, "at least one image"),
        ({"images": noise(4, 8, 8, 1), "columns": 2, "row_labels": ["one"]}, "row_labels"),
        ({"images": noise(4, 8, 8, 1), "columns": 2, "column_labels": ["1", "2", "3"]}, "column_labels"),
        ({"images": noise(4, 8, 8, 1), "columns": 2, "scale": -1}, "scale"),
    ],
)
def test_impossible_grids_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        images.grid(**arguments)
