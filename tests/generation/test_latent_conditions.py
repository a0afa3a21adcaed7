"""Samples of latent models with images among their conditions: completed, edited, enlarged, at any size."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff import sample
from jaxdiff.cli import sampling
from jaxdiff.codecs.identity import Identity
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.latent import LatentImage, MaskedImage
from jaxdiff.conditioning.noisy import NoiseAugmented
from jaxdiff.conditioning.vector import StepTable
from jaxdiff.data import images as image_arrays
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.labels import StepIndex
from jaxdiff.process.table import ScaledLinearBetas, Table
from jaxdiff.sampling.guidance.per_condition import PerCondition
from jaxdiff.sampling.modifiers.inpainting import Replacement
from tests.generation.latent_models import (
    MASK,
    PHOTOS,
    Mixed,
    Shown,
    a_latent_generator,
    decoded,
    latents_of,
)

MASKED, SOURCE = MaskedImage(), LatentImage()  # the codec sets their factors
GREY = np.where(MASK[..., None], 0.0, image_arrays.to_float(PHOTOS))
TEXT = Continuous(None, 4, null="zero", drop_rate=0.1)
TEXT_PARAMS = {"text": {"kernel": jnp.array([[0.3, -0.2, 0.5, 0.1]])}}


def near(found, expected):
    """Equal up to a level of 255, where float32 rounds."""
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def completed(known, latents):
    """Known pixels outside the mask, and inside it those of latents."""
    return np.where(MASK[..., None], decoded(latents), known)


@pytest.mark.slow
def test_a_masked_image_is_shown_and_its_known_pixels_are_kept():
    generator = a_latent_generator({"source": MASKED}, Shown())
    value = MASKED.masked(PHOTOS, MASK[..., None])
    found = generator(source=value)
    near(found, completed(PHOTOS, 0.3 * latents_of(GREY)))
    np.testing.assert_array_equal(found[:, ~MASK], PHOTOS[:, ~MASK])
    assert np.mean(found[:, MASK] != PHOTOS[:, MASK]) > 0.9
    transparent = np.where(MASK, 0, 255).astype(np.uint8)[None, ..., None].repeat(2, 0)
    np.testing.assert_array_equal(generator(source=np.concatenate([PHOTOS, transparent], -1)), found)


@pytest.mark.slow
def test_known_images_and_a_mask_are_a_masked_image():
    generator = a_latent_generator({"source": MASKED}, Mixed())
    expected = generator(source=MASKED.masked(PHOTOS, MASK[..., None]))
    np.testing.assert_array_equal(generator(known=PHOTOS, mask=MASK), expected)
    np.testing.assert_array_equal(generator(known=PHOTOS, mask=np.stack([MASK, MASK])[..., None]), expected)
    np.testing.assert_array_equal(generator(known=PHOTOS[0], mask=MASK), expected[:1])
    np.testing.assert_array_equal(
        generator(2, known=PHOTOS[1], mask=MASK)[0], generator(known=PHOTOS[1:], mask=MASK)[0]
    )
    two = np.stack([MASK, MASK[::-1]])[..., None]
    both = generator(known=PHOTOS[0], mask=two)
    np.testing.assert_array_equal(both[:1], expected[:1])
    np.testing.assert_array_equal(both[1], np.where(two[1], both[1], PHOTOS[0]))
    with pytest.raises(UserError, match="source=: expected a value for this condition"):
        generator(n=1)
    with pytest.raises(UserError, match=r"mask='bool\[8, 10, 1\]'"):
        generator(known=PHOTOS, mask=MASK[:, :10])


@pytest.mark.slow
def test_the_network_completes_and_predictions_are_not_replaced():
    """Unless the recipe names a method, or other known pixels are given."""
    generator = a_latent_generator({"source": MASKED}, Shown(factor=0.0))
    value = MASKED.masked(PHOTOS, MASK[..., None])
    zeros = np.zeros((2, 4, 6, 4), np.float32)
    near(generator(source=value), completed(PHOTOS, zeros))
    unknown = MASK.reshape(4, 2, 6, 2).any(axis=(1, 3))[..., None]
    replaced = completed(PHOTOS, np.where(unknown, zeros, 0.3 * latents_of(image_arrays.to_float(PHOTOS))))
    near(generator(source=value, known=PHOTOS, mask=MASK), replaced)
    assert np.abs(replaced.astype(int) - completed(PHOTOS, zeros)).max() > 1
    named = dataclasses.replace(
        generator, recipe=dataclasses.replace(generator.recipe, inpainting=Replacement())
    )
    grey = completed(PHOTOS, np.where(unknown, zeros, 0.3 * latents_of(MASKED.read(value)[..., :3])))
    near(named(source=value), grey)


@pytest.mark.slow
def test_a_photo_is_changed_inside_a_mask():
    generator = a_latent_generator({"source": MASKED}, Shown())
    found = generator.edit(PHOTOS, 0.5, mask=MASK)
    near(found, completed(PHOTOS, 0.3 * latents_of(GREY)))
    value = MASKED.masked(PHOTOS, MASK[..., None])
    mixed = a_latent_generator({"source": MASKED}, Mixed())
    np.testing.assert_array_equal(mixed.edit(PHOTOS, 0.5, mask=MASK), mixed.edit(PHOTOS, 0.5, source=value))
    inverted = mixed.edit(PHOTOS, 0.5, mask=MASK, before={})
    np.testing.assert_array_equal(inverted[:, ~MASK], PHOTOS[:, ~MASK])


@pytest.mark.slow
def test_an_edit_starts_from_the_photo_also_where_it_is_known():
    """The network, not the recipe, keeps the known part: its noisy latents are those of the whole photo."""
    generator = a_latent_generator({"source": MASKED}, Mixed(), steps=1)
    found = generator.edit(PHOTOS, 1.0, mask=MASK, seed=3)
    value = MASKED.masked(PHOTOS, MASK[..., None])
    sigma_over_alpha = generator._first_level()
    noise = generator._noise(2, 3) + 0.3 * latents_of(image_arrays.to_float(PHOTOS)) / sigma_over_alpha
    near(found, generator(source=value, noise=noise))


@pytest.mark.slow
def test_an_image_to_edit_is_shown_as_latents_without_scale():
    generator = a_latent_generator({"source": SOURCE}, Shown(factor=0.3))
    found = generator(source=PHOTOS)
    near(found, decoded(0.3 * latents_of(image_arrays.to_float(PHOTOS))))
    none = a_latent_generator({"source": SOURCE}, Shown(factor=0.3))(source=[PHOTOS[0], None])
    near(none, np.concatenate([found[:1], decoded(np.zeros((1, 4, 6, 4)))]))


@pytest.mark.slow
def test_images_set_the_size_of_the_samples():
    """In pixels, although they are shown as latents."""
    large = np.tile(PHOTOS[:1], (1, 2, 1, 1))
    found = a_latent_generator({"source": SOURCE}, Shown(factor=0.3))(source=large)
    near(found, decoded(0.3 * latents_of(image_arrays.to_float(large))))
    hole = np.zeros((16, 12), bool)
    hole[:5] = True
    generator = a_latent_generator({"source": MASKED}, Shown())
    found = generator(known=large, mask=hole)
    assert found.shape == (1, 16, 12, 3)
    np.testing.assert_array_equal(found[:, ~hole], large[:, ~hole])
    small = a_latent_generator({"low": ImageCondition(4)}, Shown())
    low = np.zeros((1, 8, 6, 4), np.float32)
    assert small(low=low).shape == (1, 16, 12, 3)
    with pytest.raises(UserError, match="source='7x12'"):
        a_latent_generator({"source": SOURCE}, Shown())(source=PHOTOS[:, :7], image_size=(8, 12))


@pytest.mark.slow
@pytest.mark.parametrize(
    "order", [("source", "text"), pytest.param(("text", "source"), marks=pytest.mark.slow)]
)
def test_two_scales_of_guidance_are_those_of_instruct_pix2pix(order):
    """u + s_image (image - u) + s_text (both - image), however the scales are listed."""
    scales = {"source": 1.5, "text": 7.0}
    rule = PerCondition(("source", "text"), (1.0, 1.0))
    generator = a_latent_generator(
        {"source": SOURCE, "text": TEXT}, Mixed(), {**TEXT_PARAMS, "source": {}}, guidance=rule, steps=1
    )
    noise = np.random.default_rng(3).standard_normal((2, 4, 6, 4), np.float32)
    found = generator(
        source=PHOTOS,
        text=np.float32([0.4, -0.7]),
        noise=noise,
        guidance={name: scales[name] for name in order},
    )

    def predicted(source, text):
        fields = {
            "source": jnp.asarray(latents_of(image_arrays.to_float(PHOTOS))),
            "text": jnp.array([0.4, -0.7]),
        }
        drop = {"source": jnp.full(2, not source), "text": jnp.full(2, not text)}
        apply = generator.denoiser.apply
        return apply(
            {"params": generator.params}, jnp.asarray(noise), jnp.ones(2), fields, drop, method="predict"
        ).x_0

    neither, image, both = predicted(False, False), predicted(True, False), predicted(True, True)
    near(found, decoded(neither + 1.5 * (image - neither) + 7.0 * (both - image)))


@pytest.mark.slow
def test_an_image_to_enlarge_has_noise_that_guidance_keeps():
    """The same noise at every level and in both branches, and the level's row of the table."""
    process = VariancePreserving(Table(ScaledLinearBetas()))
    low = NoiseAugmented(ImageCondition(4), StepTable(1000, 4), process, 0.35, 0.021, StepIndex(1000))
    table = np.random.default_rng(2).standard_normal((1000, 4), np.float32)
    params = {**TEXT_PARAMS, "low": {"noise": {"table": jnp.asarray(table)}}}
    generator = a_latent_generator({"low": low, "text": TEXT}, Shown(), params, Identity(), (4, 6, 4))
    images = np.random.default_rng(1).integers(0, 256, (2, 4, 6, 4), np.uint8)
    text = np.float32([0.2, -0.1])
    vector = np.outer(text, TEXT_PARAMS["text"]["kernel"])[:, None, None]

    def noise(found, step):
        alpha, sigma = process.signal(jnp.float32((step + 1) / 1000))
        return (found - vector - table[step] - float(alpha) * image_arrays.to_float(images)) / float(sigma)

    found = generator(low=images, text=text, seed=5)
    drawn = noise(found, 20)
    assert abs(drawn.std() - 1) < 4 / np.sqrt(2 * drawn.size)
    assert abs(np.corrcoef(drawn[0].ravel(), drawn[1].ravel())[0, 1]) < 4 / np.sqrt(drawn[0].size)
    higher = generator(low={"value": images, "level": 0.301}, text=text, seed=5)
    np.testing.assert_allclose(noise(higher, 300), drawn, atol=1e-4)
    guided = generator(low=images, text=text, seed=5, guidance=3.0)
    np.testing.assert_allclose(guided, found + 2 * vector, atol=1e-5)


@pytest.fixture
def call(tmp_path):
    """The command with a photo and a mask; returns the images."""
    Image.fromarray(PHOTOS[0]).save(tmp_path / "photo.png")
    grey = np.where(MASK, 128, 127).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "mask.png")

    def run(generator, *words):
        out = tmp_path / "out.npz"
        places = {"PHOTO": tmp_path / "photo.png", "MASK": tmp_path / "mask.png"}
        words = [str(places.get(word, word)).replace("=PHOTO", f"={places['PHOTO']}") for word in words]
        flags = ["--workdir", "run", "--out", str(out), "--overwrite", *words]
        sampling.run(sample.parse(flags), load=lambda workdir, **options: generator)
        return np.load(out)["images"]

    return run


@pytest.mark.slow
def test_the_command_completes_a_photo(call):
    generator = a_latent_generator({"source": MASKED}, Mixed())
    expected = generator(2, known=PHOTOS[0], mask=MASK)
    np.testing.assert_array_equal(call(generator, "--known", "PHOTO", "--mask", "MASK", "--n", "2"), expected)
    np.testing.assert_array_equal(
        call(generator, "--image", "source=PHOTO", "--mask", "MASK", "--n", "2"), expected
    )
    edited = generator.edit(PHOTOS[:1], 0.5, mask=MASK)
    words = ("--edit", "PHOTO", "--mask", "MASK", "--strength", "0.5")
    np.testing.assert_array_equal(call(generator, *words), edited)
    for words in (("--n", "1"), ("--known", "PHOTO"), ("--edit", "PHOTO")):
        with pytest.raises(UserError, match="--condition source=: expected a value for this condition"):
            call(generator, *words)


@pytest.mark.slow
def test_the_command_completes_a_photo_with_a_model_that_has_no_such_condition(call):
    plain = a_latent_generator({"text": TEXT}, Shown(), TEXT_PARAMS)
    found = call(plain, "--known", "PHOTO", "--mask", "MASK", "--condition", "text=0.5")
    np.testing.assert_array_equal(found[0][~MASK], PHOTOS[0][~MASK])
    np.testing.assert_array_equal(found, plain(known=PHOTOS[0], mask=MASK, text=0.5))
