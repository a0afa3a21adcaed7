"""The picture of samples that training draws shows for every kind of condition what was asked for and what was made."""

import dataclasses

import flax.linen as nn
import numpy as np
import pytest

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.partial import PartialImage
from jaxdiff.conditioning.text import Text
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.text import ByteTokenizer
from jaxdiff.errors import UserError
from jaxdiff.generation import preview as sample_grid
from tests.generation.test_inputs import LEVELS, WEIGHTS, a_generator, constant

LABEL = ClassLabel(3, 1, null="zero")


@dataclasses.dataclass(frozen=True)
class Dots:
    """Twelve grey images, each of its own level, with their halves."""

    image_shape: tuple[int, int, int] = (4, 4, 1)
    num_classes: int = 3
    extra: bool = True

    def open(self):
        return self

    def __len__(self):
        return 12

    def __getitem__(self, index):
        example = {"image": np.full((4, 4, 1), 10 * index, np.uint8), "index": np.int32(index)}
        example["label"] = np.int32(index % 3)
        return example | ({"low": np.full((2, 2, 1), 10 * index, np.uint8)} if self.extra else {})


class Closed:
    """Examples that are not to be read."""

    def open(self):
        raise AssertionError


@dataclasses.dataclass(frozen=True)
class Halve:
    def __call__(self, example, rng):
        return {**example, "low": example["image"][::2, ::2]}


LOW = ImageCondition(1, factor=2.0, method="nearest")


def cells(picture, rows, columns, width):
    """Colours of the middles of the cells, which are 32 pixels large and 2 apart; `width` pixels are labels."""
    return np.array(
        [[picture[34 * y + 16, width + 34 * x + 16, 0] for x in range(columns)] for y in range(rows)]
    )


def test_a_row_shows_an_example_and_what_is_made_of_it():
    generator = a_generator({"low": LOW}, {"low": {}})
    given = sample_grid.conditions(
        generator.denoiser.conditioner, Pipeline(Dots(extra=False)), Pipeline(Dots()), 0
    )
    picture = sample_grid.sample_grid(generator, given, columns=4)
    assert picture.shape == (8 * 34 - 2, 4 * 34 - 2, 1)
    np.testing.assert_array_equal(cells(picture, 8, 4, 0), 10 * np.arange(8)[:, None].repeat(4, axis=1))


def test_what_only_transforms_give_is_found_too():
    conditioner = Conditioner(NoiseLevel(8), {"low": LOW, "label": LABEL})
    made = sample_grid.conditions(conditioner, Pipeline(Dots(extra=False), (Halve(),)), None, 3)
    assert {name: len(values) for name, values in made.items()} == {"low": 8, "label": 8}
    with pytest.raises(
        UserError, match=r"config.sample_every: .*these lack low; they have image, index, label"
    ):
        sample_grid.conditions(conditioner, Pipeline(Dots(extra=False)), None, 0)


def test_classes_stand_beside_their_samples_as_words():
    generator = a_generator({"low": LOW, "label": LABEL}, {"low": {}, "label": WEIGHTS["label"]})
    given = {"label": np.array([2, 0]), "low": np.full((2, 2, 2, 1), 100, np.uint8)}
    picture = sample_grid.sample_grid(generator, given, columns=3)
    width = picture.shape[1] - (3 * 34 - 2)
    assert width > 0
    expected = [[100, *[round(100 + 127.5 * LEVELS[label])] * 2] for label in (2, 0)]
    np.testing.assert_allclose(cells(picture, 2, 3, width), expected, atol=1)


def test_classes_alone_have_a_row_each_and_nothing_is_read():
    generator = a_generator({"label": LABEL}, {"label": WEIGHTS["label"]})
    closed = Pipeline(Closed())
    assert sample_grid.conditions(generator.denoiser.conditioner, closed, closed, 0) is None
    picture = sample_grid.sample_grid(generator, None, columns=5)
    found = cells(picture, 3, 5, picture.shape[1] - (5 * 34 - 2))
    np.testing.assert_array_equal(found, constant(LEVELS)[:, 0, :1, 0].repeat(5, axis=1))
    plain = sample_grid.sample_grid(a_generator({}, {}), None, columns=2)
    assert plain.shape == (2 * 34 - 2, 2 * 34 - 2, 1)


def test_texts_are_shown_as_they_were_written():
    part, texts = Text(8, 64, head_dim=8), ["a red three", "x" * 50]
    ids = ByteTokenizer(64).encode_batch(texts)
    assert sample_grid._lines(part, ids) == ["a red three", "x" * 37 + "..."]
    assert sample_grid._lines(LABEL, np.array([3, 1])) == ["3", "1"]
    assert sample_grid._lines(LABEL, np.array([b"one", b"two"])) == ["one", "two"]
    assert sample_grid._lines(LABEL, np.array([0.5])) is None


def test_hints_and_fills_lie_beside_what_is_made_of_them():
    """Colours under transparent pixels of bytes mean nothing, and are not shown; in floats they are hints."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 3), np.uint8)
    values = PartialImage(fill=-0.2).read(pixels)
    np.testing.assert_array_equal(sample_grid.shown(values[0], (2, 4, 3)), pixels[0])
    part = sample_grid.shown(values[0, :1, :2], (2, 4, 3))
    np.testing.assert_array_equal(part, pixels[0, [0, 0]][:, [0, 0, 1, 1]])
    generator = a_generator({"source": PartialImage(channels=1, fill=-0.2)}, {}, (4, 4, 1))
    generator = dataclasses.replace(generator, denoiser=generator.denoiser.clone(network=Mean()))
    grey = np.full((2, 4, 4, 1), 90, np.uint8)
    stored = np.concatenate([grey, np.broadcast_to(np.uint8([0, 0, 0, 255])[:, None], grey.shape)], axis=-1)
    for given, shown, made in (
        (stored, 102, 102),  # the level of -0.2, and in the last column 90
        (PartialImage(1).read(grey), 90, 90),
    ):
        picture = sample_grid.sample_grid(generator, {"source": given}, columns=2)
        np.testing.assert_array_equal(cells(picture, 2, 2, 0), [[shown, made]] * 2)
        assert picture[16, 29, 0] == 90
        assert picture[16, 34 + 29, 0] == 90


class Mean(nn.Module):
    """Predicts the colours of its condition, whatever their alpha."""

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        return embeddings.spatial[..., :-1] + 0 * x


def test_conditions_of_other_colours_and_sizes_fit_beside_samples():
    colours = np.zeros((2, 2, 3), np.uint8)
    colours[0, 0] = (30, 60, 90)
    grey = sample_grid.shown(colours, (4, 4, 1))
    np.testing.assert_array_equal(grey[..., 0], np.pad(np.full((2, 2), 60), ((0, 2), (0, 2))))
    np.testing.assert_array_equal(sample_grid.shown(grey, (4, 4, 3)), grey.repeat(3, axis=2))
    np.testing.assert_array_equal(
        sample_grid.shown(np.full((2, 2, 1), 0.6, np.float32), (2, 2, 1)), np.full((2, 2, 1), 204)
    )
