"""Data consistency: images agree with a low-resolution one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.data.degradations import Downsample
from jaxdiff.data.images import to_float
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.sampling.grids.continuous import Uniform
from jaxdiff.sampling.loop import sample
from jaxdiff.sampling.modifiers.data_consistency import DataConsistency
from jaxdiff.sampling.protocols import Encoded, stateless
from jaxdiff.sampling.samplers.ddim import Ddim
from tests.oracles import predict_from_data

FLOW, T = RectifiedFlow(), 0.6
KEYS = jax.random.split(jax.random.key(0), 3)
RNG = np.random.default_rng(0)
X, X_0 = RNG.normal(size=(2, 3, 8, 12, 2))
SMALL = RNG.normal(size=(3, 2, 3, 2))


def denoise(x, t):
    return predict_from_data(FLOW, x, t, jnp.asarray(X_0))


def condition(value, absent=(False, False, False)):
    value = jax.tree.map(jnp.asarray, value)
    return {"low_res": Encoded([None], [None], value, jnp.asarray(absent))}


def matched(value, absent=(False, False, False)):
    return DataConsistency()(stateless(denoise), FLOW, condition(value, absent), KEYS)(
        jnp.asarray(X), jnp.asarray(T)
    )


def means(images):
    return np.stack([[[image[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean((0, 1)) for j in range(3)]
                      for i in range(2)] for image in np.asarray(images)])  # fmt: skip


def test_means_match_the_small_image_and_details_the_model():
    found = matched(SMALL)
    np.testing.assert_allclose(means(found.x_0), SMALL, atol=1e-12)
    change = np.asarray(found.x_0 - X_0)
    np.testing.assert_allclose(change, np.repeat(np.repeat(change[:, ::4, ::4], 4, 1), 4, 2), atol=1e-12)
    alpha, sigma = FLOW.signal(jnp.asarray(T))
    np.testing.assert_allclose(alpha * found.x_0 + sigma * found.noise, X, atol=1e-12)


def test_a_consistent_image_is_unchanged():
    found = matched(means(X_0))
    np.testing.assert_allclose(found.x_0, X_0, atol=1e-12)


def test_an_image_without_the_condition_is_unchanged():
    found = matched(SMALL, (True, False, True))
    np.testing.assert_allclose(found.x_0[::2], X_0[::2], atol=1e-12)
    np.testing.assert_allclose(means(found.x_0)[1], SMALL[1], atol=1e-12)


def test_bytes_are_consistent_within_a_level():
    image = RNG.integers(60, 190, (8, 12, 2)).astype(np.uint8)
    small = Downsample(4)(image, RNG)
    denoiser = DataConsistency()(stateless(denoise), FLOW, condition(small[None].repeat(3, 0)), KEYS)
    x_0 = sample(Ddim(), denoiser, FLOW, Uniform()(FLOW, 4), jnp.asarray(X), KEYS)
    np.testing.assert_allclose(means(x_0), np.broadcast_to(to_float(small), (3, 2, 3, 2)), atol=1e-6)


def test_unsuitable_conditions_are_errors():
    with pytest.raises(
        UserError, match=r"condition='source': expected a condition of the model.*name one of: low_res"
    ):
        DataConsistency("source")(stateless(denoise), FLOW, condition(SMALL), KEYS)
    with pytest.raises(UserError, match="size divides 8x12x2, got 3x3x2"):
        DataConsistency()(stateless(denoise), FLOW, condition(np.zeros((3, 3, 3, 2))), KEYS)(
            jnp.asarray(X), jnp.asarray(T)
        )
