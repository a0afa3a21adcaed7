"""Marks say where things are, and neither their shapes nor their colours."""

import numpy as np
import pytest

from jaxdiff.config import build, from_json, spec, to_json
from jaxdiff.data.degradations import Degradation
from jaxdiff.data.marks import Marks
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.errors import UserError

RNG = np.random.default_rng(0)
ROWS, COLUMNS = np.mgrid[:24, :32]


def disc(y, x, radius):
    return (ROWS - y) ** 2 + (COLUMNS - x) ** 2 <= radius**2


def ring(y, x):
    return disc(y, x, 3) & ~disc(y, x, 1)


def square(y, x):
    return (abs(ROWS - y) <= 3) & (abs(COLUMNS - x) <= 3)


def painted(*regions, colour=(200, 200, 200)):
    image = np.zeros((24, 32, 3), np.uint8)
    for region in regions:
        image[region] = colour
    return image


def marks(image, **options):
    return Marks(**options)(image, RNG)[..., 0]


@pytest.mark.parametrize("radius", [1, 2, 3])
@pytest.mark.parametrize("shape", [ring, square])
def test_a_disc_marks_the_centre_of_each_thing(shape, radius):
    image = painted(shape(7, 8), shape(15, 21))
    expected = np.where(disc(7, 8, radius) | disc(15, 21, radius), 255, 0)
    np.testing.assert_array_equal(marks(image, radius=radius), expected)


def test_neither_shape_nor_colour_nor_brightness_is_seen():
    expected = marks(painted(square(7, 8)))
    for image in (
        painted(ring(7, 8)),
        painted(square(7, 8), colour=(60, 90, 255)),
        painted(square(7, 8)) // 4,
    ):
        np.testing.assert_array_equal(marks(image), expected)


def test_marks_move_with_the_image():
    image = RNG.integers(0, 256, (24, 32, 3), np.uint8) * square(8, 10)[..., None]
    moved = np.roll(image, (5, 7), axis=(0, 1))
    np.testing.assert_array_equal(np.roll(marks(image), (5, 7), axis=(0, 1)), marks(moved))


def test_specks_and_black_have_no_marks():
    assert not marks(painted()).any()
    assert not marks(painted(disc(7, 8, 0))).any()


def test_a_grey_image_has_the_marks_of_its_luma():
    image = RNG.integers(0, 256, (24, 32, 1), np.uint8)
    np.testing.assert_array_equal(marks(image), marks(image.repeat(3, axis=-1)))


@pytest.mark.slow
def test_marks_of_scenes_are_near_the_digits():
    """Each disc lies in a box of a digit, and nearly all digits have one; three in a row stand close together."""
    data = Pipeline(Tfds("scenes", "test[:300]", label_key=None, fields=("count", "boxes"))).all()
    seen, inside, total = 0, 0, 0
    for image, count, boxes in zip(data["image"], data["count"], data["boxes"], strict=True):
        found = marks(image, radius=1) > 0
        total += found.sum()
        for top, left, bottom, right in boxes[:count]:
            in_box = found[top:bottom, left:right].sum()
            seen, inside = seen + (in_box > 0), inside + in_box
    assert inside / total > 0.99
    assert seen / data["count"].sum() > 0.9


def test_it_is_a_degradation_of_a_config():
    part = spec(Marks, radius=3)
    assert build(from_json(to_json(part))) == Marks(radius=3)
    assert isinstance(Marks(), Degradation)
    for wrong in ({"level": 0.0}, {"sigma": 0.0}, {"radius": 0}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))}=.*Fix: "):
            Marks(**wrong)
