"""Processes, parameterizations and likelihoods of data of any rank: reshaping an example changes nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.likelihood.flow import ExactDivergence, Hutchinson, dequantise, log_likelihood
from jaxdiff.likelihood.variational import NormalDecoder, TanhDecoder, bound
from jaxdiff.process import transition
from jaxdiff.process.conversion import convert
from jaxdiff.process.gaussian import RectifiedFlow, VariancePreserving, diffuse
from jaxdiff.process.per_example import mean_per_example, sum_per_example
from jaxdiff.process.prediction import Data, Edm, Noise, Score, V, Velocity, decode, target
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.grids.continuous import LogSnrUniform
from tests.oracles import Gaussian

PROCESS = VariancePreserving(Cosine())
IMAGES, SHAPES = (2, 2, 1), [(4,), (1, 2, 1, 2)]
KEYS = jax.random.split(jax.random.key(0), 3)
X, NOISE = np.random.default_rng(0).normal(size=(2, 3, 4))
T = jnp.asarray([0.1, 0.5, 0.9])
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def agree(function, shape, atol=1e-12):
    """`function` of x and noise of this shape, and of images."""
    found, expected = (
        jax.tree.map(
            lambda value: np.ravel(value), function(*(jnp.asarray(v).reshape(3, *each) for v in (X, NOISE)))
        )
        for each in (shape, IMAGES)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=atol), found, expected)


@each_shape
def test_reductions(shape):
    agree(lambda x, noise: (mean_per_example(x), sum_per_example(x)), shape)
    np.testing.assert_allclose(mean_per_example(jnp.asarray(X).reshape(3, *shape)), X.mean(1))
    np.testing.assert_allclose(sum_per_example(jnp.asarray(X).reshape(3, *shape)), X.sum(1))


@pytest.mark.spread(1)
@each_shape
def test_processes(shape):
    agree(lambda x, noise: diffuse(PROCESS, x, noise, T), shape)
    agree(lambda x, noise: transition.posterior_mean(PROCESS, T / 2, T, x, noise), shape)
    agree(lambda x, noise: convert(PROCESS, RectifiedFlow(), x, T), shape)


@pytest.mark.spread(5)
@each_shape
@pytest.mark.parametrize("parameterization", [Noise(), Data(), V(), Velocity(), Score(), Edm()], ids=str)
def test_parameterizations(parameterization, shape):
    x_0, noise = (jnp.asarray(v).reshape(3, *shape) for v in (X, NOISE))
    x_t = diffuse(PROCESS, x_0, noise, T)
    found = decode(parameterization, PROCESS, T, x_t, target(parameterization, PROCESS, T, x_0, noise))
    np.testing.assert_allclose(found.x_0, x_0, rtol=1e-6)
    np.testing.assert_allclose(found.noise, noise, rtol=1e-6)
    agree(lambda x, noise: parameterization.network_input(PROCESS, x, T), shape)


def denoise(x, t):
    return Gaussian(jnp.asarray(0.3), jnp.asarray(0.5)).denoiser(PROCESS)(x, t)


@pytest.mark.slow
@pytest.mark.spread(1)
@each_shape
@pytest.mark.parametrize("divergence", [ExactDivergence(), Hutchinson(2)], ids=str)
def test_likelihood_of_the_flow(divergence, shape):
    times = LogSnrUniform(-6.0, 6.0)(PROCESS, 5)
    agree(lambda x, noise: log_likelihood(denoise, PROCESS, times, x, KEYS, divergence), shape, 1e-6)
    levels = np.arange(12, dtype=np.uint8)
    flat, images = (dequantise(jnp.asarray(levels.reshape(3, *each)), KEYS) for each in (shape, IMAGES))
    np.testing.assert_array_equal(np.ravel(flat), np.ravel(images))


@pytest.mark.spread(1)
@each_shape
@pytest.mark.parametrize("decoder", [NormalDecoder(), TanhDecoder()], ids=str)
def test_variational_bound(decoder, shape):
    agree(lambda x, noise: bound(denoise, PROCESS, 4, jnp.tanh(x), KEYS, decoder=decoder), shape, 1e-6)
