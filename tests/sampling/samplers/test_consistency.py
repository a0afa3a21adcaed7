"""Sampling of consistency models: each step adds fresh noise to the predicted data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving, diffuse
from jaxdiff.process.prediction import Prediction
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.loop import sample
from jaxdiff.sampling.noise import noise_like
from jaxdiff.sampling.protocols import stateless
from jaxdiff.sampling.samplers.consistency import Consistency

STD = 0.7


def function(process):
    """The consistency function of N(0, STD^2)."""

    def denoise(x, t):
        alpha, sigma = process.signal(t)
        x_0 = STD * x / jnp.sqrt(alpha**2 * STD**2 + sigma**2)
        return Prediction(x_0, (x - alpha * x_0) / sigma)

    return denoise


@pytest.mark.parametrize(
    "process", [VarianceExploding(), VariancePreserving(Cosine()), RectifiedFlow()], ids=str
)
def test_a_step_diffuses_the_prediction_with_fresh_noise(process):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3, 2, 1)))
    keys, t, t_next = jax.random.split(jax.random.key(1), 4), jnp.asarray(0.8), jnp.asarray(0.4)
    sampler, denoise = Consistency(), function(process)
    found = sampler.step(stateless(denoise).call, process, sampler.init(x), t, t_next, keys).x
    expected = diffuse(process, denoise(x, t).x_0, noise_like(keys, x), t_next)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_any_number_of_steps_gives_the_distribution_of_the_data(steps):
    """From the exact consistency function. A standard deviation of n values has a standard error of 1 / sqrt(2 n)."""
    process, count = VarianceExploding(), 40_000
    keys = jax.random.split(jax.random.key(3), count)
    start = jnp.sqrt(STD**2 + 80.0**2) * jax.random.normal(jax.random.key(4), (count, 1, 1, 1))
    times = Karras(0.002, 80.0)(process, steps + 1)[:-1]
    found = sample(Consistency(), function(process), process, times, start, keys)
    assert abs(np.std(found) / STD - 1) < 4 / np.sqrt(2 * count)
    assert abs(np.mean(found)) < 4 * STD / np.sqrt(count)
