"""Sample grids during training: every kind of condition next to its samples."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.condition import Condition
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.partial import PartialImage
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.data import images
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError
from jaxdiff.generation import preview
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
    """Examples that must not be read."""

    def open(self):
        raise AssertionError


@dataclasses.dataclass(frozen=True)
class Halve:
    def __call__(self, example, rng):
        return {**example, "low": example["image"][::2, ::2]}


LOW = ImageCondition(1, factor=2.0, method="nearest")


class Caption(Condition):
    """A text, which changes nothing."""

    @nn.compact
    def __call__(self, values, drop):
        return Embeddings(vector=0 * values[:, None])

    @nn.nowrap
    def example(self, batch, data_shape=None):
        return jnp.zeros(batch)

    @nn.nowrap
    def read(self, value, name="caption"):
        return np.zeros(len(value), np.float32)


def cells(grid, rows, columns, width):
    """Colours of the middles of the cells, which are 32 pixels large and 2 apart; `width` pixels are labels."""
    return np.array(
        [[grid[34 * y + 16, width + 34 * x + 16, 0] for x in range(columns)] for y in range(rows)]
    )


def test_a_row_shows_an_example_and_its_samples():
    generator = a_generator({"low": LOW}, {"low": {}})
    given = preview.conditions(
        generator.denoiser.conditioner, Pipeline(Dots(extra=False)), Pipeline(Dots()), 0
    )
    grid = preview.sample_grid(generator, given, columns=4)
    assert grid.shape == (8 * 34 - 2, 4 * 34 - 2, 1)
    np.testing.assert_array_equal(cells(grid, 8, 4, 0), 10 * np.arange(8)[:, None].repeat(4, axis=1))


def test_fields_of_transforms_are_found():
    conditioner = Conditioner(NoiseLevel(8), {"low": LOW, "label": LABEL})
    generated = preview.conditions(conditioner, Pipeline(Dots(extra=False), (Halve(),)), None, 3)
    assert {name: len(values) for name, values in generated.items()} == {"low": 8, "label": 8}
    with pytest.raises(
        UserError, match=r"config.sample_every: expected examples with low, .* got image, index, label"
    ):
        preview.conditions(conditioner, Pipeline(Dots(extra=False)), None, 0)


def test_classes_label_their_samples():
    generator = a_generator({"low": LOW, "label": LABEL}, {"low": {}, "label": WEIGHTS["label"]})
    given = {"label": np.array([2, 0]), "low": np.full((2, 2, 2, 1), 100, np.uint8)}
    grid = preview.sample_grid(generator, given, columns=3)
    width = grid.shape[1] - (3 * 34 - 2)
    assert width > 0
    expected = [[100, *[round(100 + 127.5 * LEVELS[label])] * 2] for label in (2, 0)]
    np.testing.assert_allclose(cells(grid, 2, 3, width), expected, atol=1)


def test_classes_have_a_row_each_and_no_example_is_read():
    generator = a_generator({"digit": LABEL}, {"digit": WEIGHTS["label"]})
    closed = Pipeline(Closed())
    assert preview.conditions(generator.denoiser.conditioner, closed, closed, 0) is None
    grid = preview.sample_grid(generator, None, columns=5)
    found = cells(grid, 3, 5, grid.shape[1] - (5 * 34 - 2))
    np.testing.assert_array_equal(found, constant(LEVELS)[:, 0, :1, 0].repeat(5, axis=1))
    plain = preview.sample_grid(a_generator({}, {}), None, columns=2)
    assert plain.shape == (2 * 34 - 2, 2 * 34 - 2, 1)


def test_texts_label_their_samples():
    generator = a_generator({"caption": Caption()}, {})
    short, long = (
        preview.sample_grid(generator, {"caption": np.array([text, text])}, columns=2)
        for text in ("x" * 40, "x" * 50)
    )
    assert short.shape[0] == long.shape[0] == 2 * 34 - 2
    assert [preview.shorten(text) for text in ("x" * 40, "x" * 41)] == ["x" * 40, "x" * 37 + "..."]
    row_labels = images.grid(np.zeros((4, 4, 4, 1), np.uint8), 2, row_labels=["x" * 40] * 2)
    width = row_labels.shape[1] - (2 * 34 - 2)
    np.testing.assert_array_equal(short[:, :width], row_labels[:, :width])


def test_hints_and_fills_are_shown_next_to_their_samples():
    """Colours of transparent pixels are ignored in uint8 images; in float images they are hints."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 3), np.uint8)
    values = PartialImage(fill=-0.2).read(pixels)
    np.testing.assert_array_equal(preview.fit(values[0], (2, 4, 3)), pixels[0])
    part = preview.fit(values[0, :1, :2], (2, 4, 3))
    np.testing.assert_array_equal(part, pixels[0, [0, 0]][:, [0, 0, 1, 1]])
    generator = a_generator({"source": PartialImage(channels=1, fill=-0.2)}, {}, (4, 4, 1))
    generator = dataclasses.replace(generator, denoiser=generator.denoiser.clone(network=Colours()))
    grey = np.full((2, 4, 4, 1), 90, np.uint8)
    stored = np.concatenate([grey, np.broadcast_to(np.uint8([0, 0, 0, 255])[:, None], grey.shape)], axis=-1)
    for given, shown, generated in (
        (stored, 102, 102),  # the level of -0.2, and in the last column 90
        (PartialImage(1).read(grey), 90, 90),
    ):
        grid = preview.sample_grid(generator, {"source": given}, columns=2)
        np.testing.assert_array_equal(cells(grid, 2, 2, 0), [[shown, generated]] * 2)
        assert grid[16, 29, 0] == 90
        assert grid[16, 34 + 29, 0] == 90


class Colours(nn.Module):
    """Predicts the colours of its condition, and ignores alpha."""

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        return embeddings.spatial[..., :-1] + 0 * x


def test_images_of_conditions_are_fitted_to_samples():
    colours = np.zeros((2, 2, 3), np.uint8)
    colours[0, 0] = (30, 60, 90)
    grey = preview.fit(colours, (4, 4, 1))
    np.testing.assert_array_equal(grey[..., 0], np.pad(np.full((2, 2), 60), ((0, 2), (0, 2))))
    np.testing.assert_array_equal(preview.fit(grey, (4, 4, 3)), grey.repeat(3, axis=2))
    np.testing.assert_array_equal(
        preview.fit(np.full((2, 2, 1), 0.6, np.float32), (2, 2, 1)), np.full((2, 2, 1), 204)
    )
