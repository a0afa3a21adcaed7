"""Known pixels of image conditions come back bit for bit, from Python and from the command line.

The model is a convolution with random weights, so that all other pixels change.
"""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff import sample
from jaxdiff.cli import sampling
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.partial import PartialImage
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.data import images as image_arrays
from jaxdiff.errors import UserError
from jaxdiff.generation import inputs
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.modifiers.thresholding import DynamicThreshold
from tests.generation.test_inputs import a_generator

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (3, 8, 12, 3), np.uint8)
MASK = RNG.random((3, 8, 12)) < 0.4
HOLES = np.concatenate([RGB, np.where(MASK, 0, 255)[..., None].astype(np.uint8)], axis=-1)
PARTIAL = PartialImage(null="learned", drop_rate=0.1)
TASK = ClassLabel(3, 3, null="none", drop_rate=0.0)


class Mixture(nn.Module):
    """Predicts a convolution of the noisy image, the image condition and its alpha, plus the vector."""

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        seen = jnp.concatenate([x, embeddings.spatial], axis=-1)
        return jnp.tanh(nn.Conv(3, (3, 3), name="conv")(seen) + embeddings.vector[:, None, None])


@functools.cache
def params_of(denoiser):
    conditioner, shape = denoiser.conditioner, (8, 8, 3)
    given = (jnp.zeros((1, *shape)), jnp.ones(1), conditioner.example(1, shape), conditioner.none_dropped(1))
    tree = jax.eval_shape(lambda: denoiser.init(jax.random.key(0), *given, train=False))
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype), nn.meta.unbox(tree)["params"]
    )


def a_model(source=PARTIAL, **parts):
    """For images of 8 x 8 pixels and of other sizes."""
    plain = a_generator({}, {}, shape=(8, 8, 3))
    conditioner = Conditioner(NoiseLevel(3, frequencies=2), {"source": source, **parts})
    denoiser = plain.denoiser.clone(network=Mixture(), conditioner=conditioner)
    return dataclasses.replace(plain, denoiser=denoiser, params=params_of(denoiser))


def without_alpha():
    """The same model with an image condition, which has no known pixels."""
    plain, params = a_model(ImageCondition(4, null="learned", drop_rate=0.1)), dict(a_model().params)
    inner = {"parts_source": params["conditioner"]["parts_source"]["image"]}
    return dataclasses.replace(plain, params={**params, "conditioner": {**params["conditioner"], **inner}})


def test_opaque_pixels_of_all_256_levels_are_kept():
    """At a size other than training's, with guidance and a threshold that scales every image."""
    generator = a_model()
    levels = np.arange(256, dtype=np.uint8)
    known = np.stack([levels, levels[::-1], RNG.permutation(levels)], axis=-1).reshape(1, 16, 16, 3)
    generated = np.indices((16, 16)).sum(axis=0) % 5 == 0
    holes = np.concatenate([known, np.where(generated, 0, 255)[None, ..., None].astype(np.uint8)], axis=-1)
    recipe = dataclasses.replace(
        generator.recipe, guidance=ClassifierFree(2.0), modifiers=(DynamicThreshold(0.5),)
    )
    found = dataclasses.replace(generator, recipe=recipe)(source=holes)
    assert found.shape == known.shape
    np.testing.assert_array_equal(found[:, ~generated], known[:, ~generated])
    assert np.mean(found[:, generated] != known[:, generated]) > 0.9


def test_a_partial_image_equals_known_images_and_a_mask():
    found = a_model()(source=HOLES)
    values = PARTIAL.read(HOLES)
    np.testing.assert_array_equal(found, a_model()(source=values))
    explicit = a_model()(source=values, known=RGB, mask=MASK[..., None])
    np.testing.assert_array_equal(found, explicit)
    painted = np.where(MASK[..., None], 255 - RGB, RGB)
    other = np.concatenate([painted, HOLES[..., 3:]], axis=-1)
    np.testing.assert_array_equal(
        a_model()(source=other), found, "colours of transparent pixels mean nothing"
    )
    fuller = np.concatenate([np.where(MASK[..., None], 0.0, values[..., :3]) + 0.3, values[..., 3:]], axis=-1)
    assert np.any(a_model()(source=fuller.astype(np.float32)) != found), "the network sees what is there"


def test_known_images_and_a_mask_are_the_partial_image_that_is_left_out():
    found = a_model()(source=HOLES)
    np.testing.assert_array_equal(a_model()(known=RGB, mask=MASK[..., None]), found)
    with pytest.raises(UserError, match=r"mask='bool\[3, 8, 12, 3\]': expected a bool for each pixel"):
        a_model()(known=RGB, mask=MASK[..., None].repeat(3, axis=-1))


def test_no_pixel_of_a_hint_is_kept():
    found = a_model()(source=RGB)
    values = PARTIAL.read(RGB)
    np.testing.assert_array_equal(found, without_alpha()(source=values))
    assert np.mean(found == RGB) < 0.1
    grey = RGB[..., :1]
    np.testing.assert_array_equal(a_model()(source=grey), a_model()(source=grey.repeat(3, axis=-1)))


def test_images_of_a_batch_keep_their_own_pixels():
    generator = a_model()
    mixed = generator(source=[RGB[0], HOLES[1], None])
    kept = ~MASK[1]
    np.testing.assert_array_equal(mixed[1][kept], RGB[1][kept])
    for index, given in ((0, RGB[0]), (1, HOLES[1])):
        alone = generator(3, source=given)[index].astype(int)
        np.testing.assert_allclose(mixed[index], alone, atol=1)
    dropped = generator(3, source=None, image_size=(8, 12))
    np.testing.assert_allclose(mixed[2].astype(int), dropped[2], atol=1)
    gaps = generator(source=[HOLES[1], None, HOLES[1]])
    np.testing.assert_allclose(gaps[1].astype(int), dropped[1], atol=1)
    np.testing.assert_array_equal(gaps[2][kept], RGB[1][kept])
    one = dataclasses.replace(generator, batch_size=1)(source=HOLES)
    np.testing.assert_array_equal(one[~MASK], RGB[~MASK])


def test_known_images_have_precedence_over_conditions():
    mask = np.arange(12) < 6
    mask = np.broadcast_to(mask, (8, 12))
    found = a_model()(source=HOLES, known=255 - RGB, mask=mask)
    np.testing.assert_array_equal(found[:, ~mask], 255 - RGB[:, ~mask])
    assert np.mean((found == RGB)[:, mask][~MASK[:, mask]]) < 0.1


def test_known_pixels_of_two_conditions_are_merged():
    parts = {"a": PARTIAL, "b": PartialImage(), "c": ImageCondition(3)}
    given = {"a": HOLES, "b": np.concatenate([255 - RGB, np.flip(HOLES[..., 3:], axis=2)], axis=-1)}
    values = {name: parts[name].read(given[name]) for name in given} | {"c": RGB}
    absent = {"a": np.array([False, False, True]), "b": np.zeros(3, bool), "c": np.zeros(3, bool)}
    images, generated = inputs.known(parts, values, absent, (8, 12, 3))
    first = ~MASK & np.array([True, True, False])[:, None, None]
    second = np.flip(~MASK, axis=2)
    np.testing.assert_array_equal(generated[..., 0], ~(first | second))
    np.testing.assert_array_equal(image_arrays.to_uint8(images)[first], RGB[first])
    np.testing.assert_array_equal(image_arrays.to_uint8(images)[second & ~first], 255 - RGB[second & ~first])
    everything = {name: np.ones(3, bool) for name in parts}
    assert inputs.known(parts, values, everything, (8, 12, 3)) == (None, None)


def test_an_edit_keeps_known_pixels_and_begins_as_with_a_mask():
    generator = a_model()
    for options in ({}, {"before": {"source": RGB}}):
        found = generator.edit(RGB, 0.5, source=HOLES, **options)
        np.testing.assert_array_equal(found[~MASK], RGB[~MASK])
        masked = generator.edit(RGB, 0.5, source=HOLES, mask=MASK[..., None], **options)
        np.testing.assert_array_equal(found, masked)


def test_all_pixels_are_inverted():
    values = PARTIAL.read(HOLES)
    noise = a_model().invert(RGB, source=HOLES)
    np.testing.assert_array_equal(noise, without_alpha().invert(RGB, source=values))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": image_arrays.to_float(RGB)}, r"source=float32\[3, 8, 12, 3\]: expected images"),
        ({"source": np.full((8, 8, 4), 0.5, np.float32)}, r"source.alpha=\[0.5\]: expected 1 where a pixel is known"),
        ({"source": HOLES, "image_size": (8, 8)}, "source='8x12': expected 8x8, the size of image_size"),
        ({"source": HOLES, "mask": MASK[..., None]}, "known=None: expected known images together with a mask"),
        ({"n": 2, "source": HOLES}, "source: expected 2 values, one per image, got 3"),
    ],
)  # fmt: skip
def test_invalid_conditions_raise(given, message):
    with pytest.raises(UserError, match=message):
        a_model()(**given)


def test_colours_cannot_be_kept_in_grey_images():
    generator = a_generator({"source": PARTIAL}, {}, (8, 12, 1))
    message = r"source='8x12x3': expected opaque pixels of 8x12x1, as the images have.* Fix: .* is a hint"
    with pytest.raises(UserError, match=message):
        generator(source=HOLES)


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Runs the command on a model, in a folder with images; returns the arrays that it stores."""
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        image_arrays.save_png(f"rgb{i}.png", RGB[i])
        image_arrays.save_png(f"holes{i}.png", HOLES[i])
    image_arrays.save_png("mask.png", 255 * MASK[0][..., None].astype(np.uint8))
    image_arrays.save_png("small.png", np.zeros((8, 8, 1), np.uint8))

    def run(generator, *words):
        request = sample.parse(["--workdir", "run", "--out", "out.npz", "--overwrite", *words])
        sampling.run(request, load=lambda workdir, **options: generator)
        return dict(np.load("out.npz"))

    return run


def test_transparent_pixels_of_a_file_are_generated(call):
    found = call(a_model(), "--image", "source=holes0.png", "--n", "2")
    np.testing.assert_array_equal(found["images"], a_model()(2, source=HOLES[0]))
    np.testing.assert_array_equal(found["images"][:, ~MASK[0]], RGB[[0, 0]][:, ~MASK[0]])
    np.testing.assert_array_equal(found["source"], PARTIAL.read(HOLES[0]))
    hint = call(a_model(), "--image", "source=rgb0.png", "--n", "2")["images"]
    np.testing.assert_array_equal(hint, a_model()(2, source=RGB[0]))
    full = np.concatenate([RGB[0], np.full((8, 12, 1), 255, np.uint8)], axis=-1)
    image_arrays.save_png("full.png", full)
    again = call(a_model(), "--image", "source=full.png", "--n", "2")["images"]
    np.testing.assert_array_equal(again, hint, "room for transparency is none")
    Image.fromarray(RGB[0, ..., 0]).save("grey.png")
    grey = call(a_model(), "--image", "source=grey.png")["images"]
    np.testing.assert_array_equal(grey, a_model()(source=RGB[:1, ..., :1]))


def test_a_mask_makes_the_image_of_a_condition_transparent(call):
    given = ("--image", "source=rgb0.png", "--mask", "mask.png", "--n", "2")
    found = call(a_model(task=TASK), *given, "--condition", "task=1")
    np.testing.assert_array_equal(found["images"], a_model(task=TASK)(2, source=HOLES[0], task=1))
    np.testing.assert_array_equal(found["images"][:, ~MASK[0]], RGB[[0, 0]][:, ~MASK[0]])
    np.testing.assert_array_equal(found["source"], PARTIAL.read(HOLES[0]))
    two = ("--image", "source=rgb0.png", "--image", "source=rgb1.png")
    several = call(a_model(), *two, "--mask", "mask.png")
    np.testing.assert_array_equal(several["images"][:, ~MASK[0]], RGB[:2][:, ~MASK[0]])


def test_known_and_edit_take_the_mask_before_the_condition(call):
    found = call(a_model(), "--image", "source=holes0.png", "--mask", "mask.png", "--known", "rgb1.png")
    np.testing.assert_array_equal(found["images"][0][~MASK[0]], RGB[1][~MASK[0]])
    np.testing.assert_array_equal(found["source"], PARTIAL.read(HOLES[0]))
    found = call(a_model(), "--image", "source=rgb0.png", "--mask", "mask.png", "--edit", "rgb1.png")
    np.testing.assert_array_equal(found["images"][0][~MASK[0]], RGB[1][~MASK[0]])


def test_a_file_of_conditions_may_have_gaps_hints_and_none(call, tmp_path):
    rows = [{"source": "holes0.png"}, {"source": "rgb1.png"}, {"source": None}]
    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = call(a_model(), "--conditions", "many.jsonl")["images"]
    np.testing.assert_array_equal(found, a_model()(source=[HOLES[0], RGB[1], None]))
    np.testing.assert_array_equal(found[0][~MASK[0]], RGB[0][~MASK[0]])
    (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, rows[1:])))
    found = call(a_model(), "--conditions", "some.jsonl", "--mask", "mask.png")["images"]
    np.testing.assert_array_equal(found[0][~MASK[0]], RGB[1][~MASK[0]])
    assert np.mean(found[1] == RGB[1]) < 0.1


def test_grey_files_have_transparency_too(call):
    part = PartialImage(channels=1)
    Image.fromarray(HOLES[0]).convert("LA").save("grey.png")
    stored = np.asarray(Image.open("grey.png"))
    generator = dataclasses.replace(
        a_generator({}, {}, (8, 12, 1)),
        denoiser=a_generator({"source": part}, {}, (8, 12, 1)).denoiser.clone(network=FirstChannel()),
    )
    found = call(generator, "--image", "source=grey.png")["images"][0]
    np.testing.assert_array_equal(found[~MASK[0]], stored[~MASK[0]][:, :1])
    np.testing.assert_array_equal(found[MASK[0]], 0)


class FirstChannel(nn.Module):
    """Black."""

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        return 0 * x - 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--image", "source=holes0.png", "--mask", "mask.png"),
         "--mask source: expected an image without transparent pixels of its own"),
        (("--image", "source=rgb0.png", "--mask", "small.png"),
         "--mask='small.png': expected an image of 12x8 pixels, got 8x8"),
        (("--condition", "source=none", "--mask", "small.png"),
         "--mask='.*': expected an image as well, got none"),
        (("--image", "source=rgb0.png", "--image", "source=small.png"),
         "source: expected images of one size, got 8x8 and 12x8 pixels"),
        (("--image", "source=many.txt"), "--image source=many.txt: expected an image, got No such file"),
    ],
)  # fmt: skip
def test_mistakes_in_flags_are_reported(call, words, message):
    with pytest.raises(UserError, match=message):
        call(a_model(), *words)
