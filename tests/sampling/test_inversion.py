"""DDIM inversion: the error of the round trip, and its decrease with iterations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.sampling.inversion import invert
from jaxdiff.sampling.loop import integrate
from jaxdiff.sampling.samplers.ddim import Ddim
from tests.oracles import Counting
from tests.sampling.solving import GRIDS, OTHERS, POINTS, QUICK, VE, denoiser, gaussian


def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(2).normal(size=(2 * POINTS, 1, 1, 2)))


def round_trip(process, times, x, iterations):
    """The distance from x after inversion and sampling."""
    keys, denoise = jax.random.split(jax.random.key(0), len(x)), denoiser(process)
    up = invert(denoise, process, times, x, keys, iterations)
    return integrate(Ddim(), denoise, process, times, up, keys) - x


quick_round_trip = jax.jit(round_trip, static_argnums=(0, 3), compiler_options=QUICK)


@pytest.mark.spread(2)
@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_the_round_trip_errs_one_order_less_with_each_iteration(iterations):
    few, many = (
        np.sqrt(np.mean(np.asarray(quick_round_trip(VE, GRIDS[0](VE, steps + 1), images(), iterations)) ** 2))
        for steps in (100, 200)
    )
    assert many < 0.05
    np.testing.assert_allclose(np.log2(few / many), 1 + iterations, atol=0.2)


@pytest.mark.spread(2)
@pytest.mark.parametrize("process", [VE, *OTHERS], ids=str)
def test_with_enough_iterations_it_is_the_exact_inverse(process):
    times = GRIDS[1](process, 401)
    np.testing.assert_allclose(quick_round_trip(process, times, images(), 6), 0, atol=1e-9)


def test_without_iterations_it_is_ddim_upwards():
    times, x = GRIDS[0](VE, 9), images()
    keys = jax.random.split(jax.random.key(0), len(x))
    found = invert(denoiser(VE), VE, times, x, keys)
    expected = integrate(Ddim(), denoiser(VE), VE, times[::-1], x, keys)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_the_result_is_the_noise_of_the_flow():
    """Every pixel of Gaussian data keeps its quantile, up to pure noise."""
    flow, x = RectifiedFlow(), images()[:POINTS]
    times = jnp.linspace(1.0, 0.01, 400)
    keys = jax.random.split(jax.random.key(0), POINTS)
    found = invert(gaussian().denoiser(flow), flow, times, x, keys)
    np.testing.assert_allclose(found, gaussian().flow(flow, x, times[-1], times[0]), atol=0.02)


def test_calls_are_counted():
    denoise, x = Counting(gaussian().denoiser(VE)), images()[:POINTS]
    with jax.disable_jit():
        invert(denoise, VE, GRIDS[0](VE, 3), x, jax.random.split(jax.random.key(0), POINTS), 2)
    assert denoise.calls == 2 * (1 + 2)


def test_a_negative_count_is_refused():
    x = images()
    with pytest.raises(UserError, match="iterations=-1"):
        invert(denoiser(VE), VE, GRIDS[0](VE, 4), x, jax.random.split(jax.random.key(0), len(x)), -1)
