"""Adaptive Runge-Kutta solvers: order, tolerance, and the limit of calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import RK45

from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.grids import continuous as grids
from jaxdiff.sampling.loop import integrate
from jaxdiff.sampling.samplers.adaptive import ERROR, STAGES, Rk45, RungeKutta4, Walk
from tests.oracles import Counting, Gaussian
from tests.sampling.solving import GRIDS, OTHERS, POINTS, VE, errors, gaussian, orders, solve, start, walk

BLIND = Rk45(atol=1e9)
"""It accepts every step, so that the steps are those of the grid."""


@pytest.mark.slow
def test_order_of_convergence():
    found = orders(RungeKutta4(), 24)
    assert np.all(np.abs(found - 4) < 0.15), found
    # The angle runs unevenly through these grids: its fifth order is not yet settled where rounding begins.
    found = orders(BLIND, 12)
    assert np.all((found > 4.6) & (found < 7)), found


def test_coefficients_match_scipy():
    for row, known in zip(STAGES, [*RK45.A[1:], RK45.B], strict=True):
        np.testing.assert_allclose(row, known[: len(row)], rtol=1e-15)
    np.testing.assert_allclose(np.abs(ERROR), np.abs(RK45.E), rtol=1e-14)
    assert abs(sum(ERROR)) < 1e-15


def test_the_error_goes_with_the_tolerance():
    few, many = (errors(Rk45(tolerance, tolerance), 1) for tolerance in (1e-4, 1e-6))
    assert np.all(few < 2e-4)
    assert np.all(many < 2e-6)
    assert np.all(many < few / 20)


def two_times():
    """One step of the grid, divided by the solver according to its tolerance."""
    return GRIDS[0](VE, 2)


def calls(sampler, times=None, points=POINTS, denoise=None):
    times = two_times() if times is None else times
    data = Gaussian(gaussian().mean[:points], gaussian().std)
    counting = Counting(denoise or data.denoiser(VE))
    with jax.disable_jit():
        end = walk(sampler, counting, VE, times, start()[:points])[-1]
    return counting.calls, end


@pytest.mark.slow
def test_calls_grow_with_the_fifth_root_of_the_tolerance():
    few, many = (calls(Rk45(0.0, tolerance), points=2)[0] for tolerance in (1e-5, 1e-9))
    assert (few - 1) % 6 == 0
    assert 2.5 < many / few < 6.4  # 10^(4/5) is 6.3
    assert few < 100


def next_step(sampler, h, rejected=False):
    """The next step size after a step h of dz/dphi = z."""
    z = jnp.ones((2, 1, 1, 1))
    walk = Walk(jnp.asarray(1.5), z, z, jnp.asarray(h), jnp.zeros((), jnp.int32), jnp.asarray(rejected))
    return float(sampler.attempt(lambda phi, z: z, jnp.asarray(0.1), walk).h)


def test_steps_follow_the_error():
    """By the fifth root of the error; at most five times larger, and not larger after a rejected step."""
    few, many = (next_step(Rk45(0.0, tolerance), 0.8) for tolerance in (1e-3, 32e-3))
    np.testing.assert_allclose(many / few, 2, rtol=1e-12)
    np.testing.assert_allclose(next_step(Rk45(), 1e-3), 5e-3, rtol=1e-12)
    np.testing.assert_allclose(next_step(Rk45(), 1e-3, rejected=True), 1e-3, rtol=1e-12)
    np.testing.assert_allclose(next_step(Rk45(0.0, 1e-14), 0.8), 0.2 * 0.8, rtol=1e-12)


@pytest.mark.slow
def test_exhausted_calls_give_nan():
    needed, end = calls(Rk45(1e-5, 1e-5), points=2)
    assert np.all(np.isfinite(end))
    just, same = calls(Rk45(1e-5, 1e-5, max_calls=needed), points=2)
    assert just == needed == Rk45(max_calls=needed).calls(1)
    np.testing.assert_array_equal(same, end)
    most, nothing = calls(Rk45(1e-5, 1e-5, max_calls=needed - 1), points=2)
    assert most == needed - 6 == Rk45(max_calls=needed - 1).calls(1)
    assert np.all(np.isnan(nothing))
    assert Rk45(max_calls=20).calls(3) == 3 * 19


def test_a_nan_of_the_denoiser_is_not_retried():
    def broken(x, t):
        return Prediction(jnp.full_like(x, jnp.nan), x)

    used, end = calls(Rk45(), denoise=broken)
    assert used <= 7
    assert np.all(np.isnan(end))


@pytest.mark.slow
def test_the_step_size_carries_over():
    """Only the first piece of a grid has a careful initial step; each later piece needs one attempt."""
    times = GRIDS[1](VE, 25)
    used, _ = calls(Rk45(1e-2, 1e-2), times, points=2)
    assert used < 24 * 7 + 6 * 6


@pytest.mark.slow
def test_an_image_depends_on_its_neighbours_within_the_tolerance():
    sampler = Rk45(1e-5, 1e-5)
    _, alone = calls(sampler, points=1)
    _, beside = calls(sampler, points=POINTS)
    assert 0 < np.abs(beside[:1] - alone).max() < 1e-4


def test_every_image_is_within_the_tolerance():
    """An image among trivial ones gets the same steps as alone: the error is not averaged over the batch."""
    x = jnp.zeros((POINTS, 1, 1, 2)).at[0].set(8.0)

    def run(x):
        mean = jnp.zeros_like(x).at[0].set(1.0)
        counting = Counting(Gaussian(mean, gaussian().std).denoiser(VE))
        with jax.disable_jit():
            end = walk(Rk45(1e-4, 1e-4), counting, VE, two_times(), x)[-1]
        return counting.calls, end

    (alone, end), (among, ends) = run(x[:1]), run(x)
    assert alone == among
    np.testing.assert_allclose(ends[:1], end, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.spread(1)
@pytest.mark.parametrize("sampler", [RungeKutta4(), Rk45(1e-4, 1e-4)], ids=str)
def test_every_process_gives_the_same_path(sampler):
    expected = solve(sampler, VE, GRIDS[0](VE, 3)[None], start())
    for process in OTHERS:
        times = GRIDS[0](process, 3)
        first, last = process.signal(times[jnp.asarray([0, -1])]).alpha
        found = solve(sampler, process, times[None], first * start())
        np.testing.assert_allclose(found / last, expected, rtol=1e-7, atol=1e-8)


def test_from_pure_noise():
    """Pure noise has the angle pi / 2, where everything is finite."""
    x, flow = start(), RectifiedFlow()
    for sampler, steps, tolerance in ((Rk45(1e-8, 1e-8), 1, 1e-6), (RungeKutta4(), 40, 1e-5)):
        times = jnp.linspace(1.0, 0.1, steps + 1)
        found = solve(sampler, flow, times[None], x)[0, :POINTS]
        np.testing.assert_allclose(
            found, gaussian().flow(flow, x[:POINTS], times[0], times[-1]), atol=tolerance
        )


def test_calls_are_counted():
    assert calls(RungeKutta4(), GRIDS[0](VE, 4))[0] == RungeKutta4().calls(3) == 12


def test_single_precision(float32):
    times = grids.Karras(0.002, 80.0)(VE, 2)
    oracle, x = gaussian(), 8 * start()[:POINTS].astype(jnp.float32)
    oracle = Gaussian(oracle.mean.astype(jnp.float32), oracle.std.astype(jnp.float32))
    keys = jax.random.split(jax.random.key(0), POINTS)
    found = integrate(Rk45(1e-5, 1e-5), oracle.denoiser(VE), VE, times, x, keys)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, oracle.flow(VE, x, times[0], times[1]), atol=2e-4)
