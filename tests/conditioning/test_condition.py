"""What a condition declares: values from words and JSON, descriptions, images, classes, noise levels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff.conditioning.condition import Condition
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.embedding import EmbeddedSequence
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.magnitude import MagnitudeClassLabel
from jaxdiff.conditioning.noisy import NoiseAugmented
from jaxdiff.conditioning.partial import PartialImage
from jaxdiff.conditioning.text import Text
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.data.text import ByteTokenizer
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError
from jaxdiff.models.text_encoder import ByteTransformer
from jaxdiff.process.gaussian import RectifiedFlow

RNG = np.random.default_rng(0)
TEXT = Text(ByteTokenizer(16), ByteTransformer(8, head_dim=8))
LOW = ImageCondition(3, factor=2.0)
NOISY = NoiseAugmented(LOW, NoiseLevel(8), RectifiedFlow(), level=0.2)


class Number(Condition):
    """A minimal condition."""

    @nn.compact
    def __call__(self, values, drop):
        return Embeddings(vector=values[:, None])

    @nn.nowrap
    def example(self, batch, data_shape=None):
        return jnp.zeros(batch)


def test_the_defaults_of_a_condition():
    part = Number()
    values = np.arange(3.0)
    assert (part.flag, part.default, part.null, part.drop_rate, part.classes) == (
        None,
        None,
        "none",
        0.0,
        None,
    )
    np.testing.assert_array_equal(part.read([0.0, 1.0, 2.0]), values)
    assert part.draw(values, jax.random.split(jax.random.key(0), 3), train=True) is values
    assert part.unaugmented(values) is values
    assert part.known_pixels(values) is part.masked(values, np.ones((2, 2, 1), bool)) is None
    assert part.images(values) is part.image_shape((4, 4, 3)) is part.describe(values) is None
    assert part.parse("1.5", "--condition x") == [1.5]
    assert part.parse("[1, 2]", "--condition x") == [[1, 2]]
    assert part.parse("a word", "--condition x") == ["a word"]
    with pytest.raises(
        UserError, match=r"level=0.1: expected a condition with noise augmentation, got Number"
    ):
        part.with_level(values, 0.1)


@pytest.mark.parametrize("part", [ClassLabel(5, 8), MagnitudeClassLabel(5, 8)])
def test_class_labels_are_parsed(part):
    assert (part.flag, part.classes) == ("label", 5)
    assert part.parse("3", "--label") == [3]
    assert part.parse("3,1,4", "--label") == [3, 1, 4]
    assert part.parse("all", "--label") == [0, 1, 2, 3, 4]
    assert part.parse("[0.5, 0.5, 0, 0, 0]", "--label") == [[0.5, 0.5, 0, 0, 0]]
    with pytest.raises(UserError, match=r"--label=three: expected classes, got 'three'. Fix: .*0 to 4"):
        part.parse("three", "--label")
    assert part.describe(np.array([3, 1])) == ["3", "1"]
    assert part.to_arrays(3, "digit", 2)["digit"].tolist() == [3, 3]
    assert part.to_arrays([3, 1], "digit", 2)["digit"].tolist() == [3, 1]


def test_texts_are_parsed_and_described():
    assert TEXT.flag == "text"
    for word, text in {"12": "12", "a red 3": "a red 3", '"none"': "none", "[1]": "[1]"}.items():
        assert TEXT.parse(word, "--condition text") == [text]
    assert TEXT.describe(TEXT.read(["a red 3", ""])) == ["a red 3", ""]
    assert TEXT.describe(np.array(["a", "b"])) == ["a", "b"]
    assert TEXT.describe(np.array([b"a", b"b"], object)) == ["a", "b"]


def test_image_files_are_parsed(tmp_path):
    pixels = RNG.integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    (found,) = LOW.parse(str(tmp_path / "x.png"), "--image low")
    np.testing.assert_array_equal(found, pixels)
    np.testing.assert_array_equal(LOW.from_json("x.png", "low", tmp_path), pixels)
    assert LOW.from_json(None, "low", tmp_path) is None
    with pytest.raises(UserError, match="low=3: expected the path of an image"):
        LOW.from_json(3, "low", tmp_path)
    with pytest.raises(UserError, match=r"--image low=.*absent.png: expected an image, got No such file"):
        LOW.parse(str(tmp_path / "absent.png"), "--image low")
    noisy = NOISY.from_json({"value": "x.png", "level": 0.3}, "low", tmp_path)
    assert noisy["level"] == 0.3
    np.testing.assert_array_equal(noisy["value"], pixels)


@pytest.mark.parametrize("part", [LOW, NOISY, PartialImage()])
def test_images_of_one_value_have_one_size(part):
    with pytest.raises(UserError, match="low: expected images of one size, got 4x4 and 6x4 pixels"):
        part.read([np.zeros((4, 6, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)], "low")


def test_image_conditions_have_a_shape_and_images_to_show():
    assert LOW.image_shape((8, 12, 3)) == NOISY.image_shape((8, 12, 3)) == (4, 6, 3)
    assert PartialImage().image_shape((8, 12, 3)) == (8, 12, 4)
    pixels = RNG.integers(0, 256, (2, 4, 6, 3), np.uint8)
    for part in (LOW, NOISY):
        np.testing.assert_array_equal(part.images(pixels), pixels)
        assert part.describe(pixels) is None
    hint = PartialImage().images(pixels)
    np.testing.assert_allclose(hint, pixels / 127.5 - 1, atol=1e-6)
    for part, values in (
        (EmbeddedSequence(3, 2, 8), np.zeros((2, 2, 3))),
        (Continuous(2, 8), np.zeros((2, 2))),
    ):
        assert part.images(values) is part.describe(values) is part.image_shape((8, 8, 3)) is None


def test_noise_levels_of_values():
    """A value, a value with a level, and lists of both are equivalent, in any order."""
    images = [np.full((4, 6, 3), level, np.uint8) for level in (10, 20)]
    stacked = np.stack(images)
    for value, levels in (
        (stacked, 0.2),
        (images, 0.2),
        (NOISY.with_level(stacked, 0.4), 0.4),
        (NOISY.with_level(images, 0.4), [0.4, 0.4]),
        (NOISY.with_level({"value": stacked, "level": 0.1}, 0.4), 0.4),
        ([{"value": images[0], "level": 0.3}, images[1]], [0.3, 0.2]),
    ):
        found = NOISY.read(value)
        np.testing.assert_array_equal(found["value"], stacked)
        np.testing.assert_allclose(found["level"], np.float32(levels))
        np.testing.assert_array_equal(NOISY.unaugmented(found), stacked)
    assert NOISY.with_level([images[0], None], 0.4)[1] is None
    assert set(NOISY.to_arrays(images, "low", 2)) == {"low"}
    stored = NOISY.to_arrays(NOISY.with_level(images, 0.4), "low", 2)
    np.testing.assert_array_equal(stored["low"], stacked)
    assert stored["low_level"].tolist() == [0.4, 0.4]


def test_masks_make_partial_images_transparent():
    part, mask = PartialImage(fill=0.5), RNG.random((4, 6, 1)) < 0.5
    pixels = RNG.integers(0, 256, (4, 6, 3), np.uint8)
    colours, unknown = part.known_pixels(part.masked(pixels, mask))
    np.testing.assert_array_equal(unknown, mask)
    np.testing.assert_allclose(colours, np.where(mask, 0.5, pixels / 127.5 - 1), atol=1e-6)
    several = part.masked([pixels, None], mask)
    assert several[1] is None
    np.testing.assert_array_equal(several[0], part.masked(pixels, mask))
    with pytest.raises(UserError, match="--mask x: expected an image without transparent pixels of its own"):
        part.masked(part.masked(pixels, mask), mask, "--mask x")
    assert LOW.masked(pixels, mask) is None
