"""Noise-conditioning augmentation: the noise that is drawn, and the level that the network sees."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.noisy import NoiseAugmented
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow

NOISE, OTHER = (NoiseLevel(8, frequencies=3) for _ in range(2))  # one object would be one set of parameters
PART = NoiseAugmented(
    ImageCondition(1, factor=2.0, null="learned", drop_rate=0.3),
    OTHER,
    RectifiedFlow(),
    max_level=0.5,
    level=0.25,
)
MODEL = Conditioner(NOISE, {"low": PART})


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def draw(values, count=None, seed=0, train=False, model=MODEL):
    return model.draw({"low": values}, keys(count or len(values), seed), train)["low"]


def test_training_levels_are_uniform_and_match_the_noise():
    images = jnp.full((20_000, 4, 4, 1), 0.4)
    drawn = draw(images, train=True)
    level, value = drawn["level"], drawn["value"]
    quantiles = np.quantile(level, [0.1, 0.25, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(quantiles, 0.5 * np.array([0.1, 0.25, 0.5, 0.75, 0.9]), atol=0.01)
    assert 0 <= level.min() < level.max() < 0.5
    noise = (value - (1 - level[:, None, None, None]) * images) / level[:, None, None, None]
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 4 / np.sqrt(noise.size)
    assert abs(np.corrcoef(level, noise.mean(axis=(1, 2, 3)))[0, 1]) < 4 / np.sqrt(20_000)


def test_the_sampling_level_is_the_given_one_or_the_default():
    images = jnp.linspace(-1, 1, 32).reshape(2, 4, 4, 1)
    drawn = draw(images)
    np.testing.assert_array_equal(drawn["level"], 0.25)
    noise = (drawn["value"] - 0.75 * images) / 0.25
    given = draw({"value": images, "level": jnp.array([0.0, 0.5])})
    np.testing.assert_array_equal(given["value"][0], images[0])
    np.testing.assert_allclose(given["value"][1], 0.5 * (images + noise)[1], atol=1e-6)
    bytes_ = jnp.full((2, 4, 4, 1), 255, jnp.uint8)
    np.testing.assert_allclose(draw({"value": bytes_, "level": jnp.zeros(2)})["value"], 1)


def test_noise_is_a_function_of_the_image_key_and_the_condition():
    images = jnp.zeros((3, 4, 4, 1))
    together = draw(images)["value"]
    alone = MODEL.draw({"low": images[:1]}, keys(3)[1:2], train=False)["low"]["value"]
    np.testing.assert_array_equal(alone[0], together[1])
    more = Conditioner(NOISE, {"a": PART, "low": PART, "z": PART})
    drawn = more.draw(dict.fromkeys(("a", "low", "z"), images), keys(3), train=False)
    np.testing.assert_array_equal(drawn["low"]["value"], together)
    assert len({drawn[name]["value"].tobytes() for name in drawn}) == 3
    assert len({image.tobytes() for image in together}) == 3


def test_the_network_sees_the_noisy_image_and_the_level():
    label, images = jnp.array([0.1, 0.9]), jnp.linspace(-1, 1, 32).reshape(2, 4, 4, 1)
    values = {"value": images, "level": jnp.array([0.1, 0.4])}
    none = MODEL.none_dropped(2)
    params = nn.meta.unbox(MODEL.init(jax.random.key(0), label, {"low": values}, none))["params"]
    assert set(params["parts_low"]) == {"part", "noise"}
    params["parts_low"]["part"]["null"] = jnp.full((1, 1, 1, 1), 0.9)

    def embed(values, drop):
        return MODEL.apply({"params": params}, label, {"low": values}, {"low": jnp.array(drop)})

    plain = NOISE.apply({"params": params["noise"]}, label).vector
    level_vector = NOISE.apply({"params": params["parts_low"]["noise"]}, 1000 * values["level"]).vector
    found = embed(values, [False, True])
    np.testing.assert_allclose(found.vector, plain + level_vector * jnp.array([[1], [0]]), atol=1e-5)
    np.testing.assert_allclose(
        found.spatial[0], jax.image.resize(images[0], (8, 8, 1), "bilinear"), atol=1e-6
    )
    np.testing.assert_allclose(found.spatial[1], 0.9)


def test_a_condition_without_a_null_always_shows_its_level():
    always = NoiseAugmented(ImageCondition(1), NOISE, RectifiedFlow())
    values = {"value": jnp.zeros((2, 4, 4, 1)), "level": jnp.array([0.1, 0.4])}
    params = always.init(jax.random.key(0), values, jnp.zeros(2, bool))
    shown, dropped = (always.apply(params, values, jnp.full(2, drop)).vector for drop in (False, True))
    np.testing.assert_array_equal(shown, dropped)
    assert Conditioner(NOISE, {"low": PART}).has_null("low")
    assert not Conditioner(NOISE, {"low": always}).has_null("low")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoiseAugmented(ImageCondition(1), NOISE, RectifiedFlow(), max_level=0.0), "max_level=0.0"),
        (lambda: NoiseAugmented(ImageCondition(1), NOISE, RectifiedFlow(), 0.5, level=0.6), "level=0.6"),
        (lambda: PART.read({"image": 1}), r"\['image'\]: expected a value and its level"),
        (
            lambda: PART.check(PART.example(2, (8, 8, 3)) | {"level": np.array([0, 0.6])}, "low"),
            "low.level=.*0.6",
        ),
        (lambda: PART.check({"value": np.zeros((2, 4, 4, 3)), "level": np.zeros(2)}, "low"), "low=float64"),
    ],
)
def test_invalid_levels_raise(make, message):
    with pytest.raises(UserError, match=message):
        make()
