"""Adams methods: exact for polynomials of their coordinate, and of their documented order."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from jaxdiff.process.gaussian import RectifiedFlow, VariancePreserving
from jaxdiff.process.prediction import Prediction
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.protocols import SamplerState, stateless
from jaxdiff.sampling.samplers.adams import AdamsBashforth, Deis, Lms, level, stretch
from jaxdiff.sampling.samplers.ddim import Ddim
from tests.oracles import predict_from_data
from tests.sampling.solving import (
    GRIDS,
    POINTS,
    QUICK,
    VE,
    denoiser,
    errors,
    gaussian,
    orders,
    start,
    truth,
    walk,
)

SECOND = (1.85, 2.1)


@pytest.mark.spread(1)
@pytest.mark.parametrize("sampler", [Lms(2), Deis(2), AdamsBashforth(2), AdamsBashforth(4)], ids=str)
def test_order_of_convergence(sampler):
    """On varying steps, fixed coefficients are of second order for any number of predictions."""
    found = orders(sampler)
    assert np.all((SECOND[0] < found) & (found < SECOND[1])), found
    assert np.all(errors(sampler, 96) < 1e-3)


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def solve_from(sampler, times, exact):
    """The end of each grid, when the steps before the last of the `exact` states are replaced by them."""
    keys = jax.random.split(jax.random.key(0), exact.shape[2])

    def run(times, exact):
        state = sampler.init(exact[0])
        for k in range(len(exact) - 1):
            stepped = sampler.step(
                stateless(denoiser(VE)).call,
                VE,
                SamplerState(exact[k], state.history),
                times[k],
                times[k + 1],
                keys,
            )
            state = SamplerState(exact[k + 1], stepped.history)

        def step(state, ends):
            return sampler.step(stateless(denoiser(VE)).call, VE, state, *ends, keys), None

        return jax.lax.scan(step, state, (times[len(exact) - 1 : -1], times[len(exact) :]))[0].x

    return jax.vmap(run)(times, exact)


def exact_states(sigmas) -> np.ndarray:
    """The flow of `start` at these falling noise levels, of which the first is SIGMA_MAX."""
    x, sigmas = np.asarray(start()), np.asarray(sigmas)
    times = VE.time(-2 * jnp.log(jnp.asarray(sigmas)))
    one = [gaussian().flow(VE, x[:POINTS], times[0], t) for t in times]

    def slope(sigma, flat):
        shaped = jnp.asarray(np.concatenate([x[:POINTS], flat.reshape(x[POINTS:].shape)]))
        return np.asarray(noise_of(shaped, VE.time(jnp.asarray(-2 * np.log(sigma)))))[POINTS:].ravel()

    flow = solve_ivp(
        slope, (sigmas[0], sigmas[-1]), x[POINTS:].ravel(), "DOP853", sigmas, rtol=1e-11, atol=1e-11
    )
    other = flow.y.T.reshape(len(sigmas), *x[POINTS:].shape)
    return np.concatenate([np.stack(one), other], axis=1)


noise_of = jax.jit(lambda x, t: denoiser(VE)(x, t).noise)


@pytest.mark.spread(1)
@pytest.mark.parametrize(("sampler", "order"), [(Lms(4), 4), (Deis(3), 3)], ids=str)
def test_order_from_an_exact_start(sampler, order):
    """Otherwise the first-order initial step dominates: second order overall."""

    def found(steps):
        times = jnp.stack([grid(VE, steps + 1) for grid in GRIDS])
        exact = np.stack([exact_states(VE.signal(one[: sampler.order]).sigma) for one in times])
        square = (np.asarray(solve_from(sampler, times, jnp.asarray(exact))) - truth()) ** 2
        return np.sqrt(square.reshape(len(GRIDS), 2, -1).mean(-1))

    few, many = found(128), found(256)
    assert np.all(np.abs(np.log2(few / many) - order) < 0.3), np.log2(few / many)


def test_higher_orders_have_smaller_errors():
    few, many = errors(Lms(2), 96), errors(Lms(4), 96)
    assert np.all(many < few / 10)


COORDINATES = {
    "s": lambda process, t: level(process, t),
    "log s": lambda process, t: -process.log_snr(t) / 2,
    "t": lambda process, t: t,
}


@pytest.mark.spread(1)
@pytest.mark.spread(3)
@pytest.mark.parametrize("process", [RectifiedFlow(), VariancePreserving(Cosine())], ids=str)
@pytest.mark.parametrize(
    ("sampler", "coordinate"),
    [(Lms(order), "s") for order in (1, 2, 3, 4)]
    + [(Deis(order), "log s") for order in (1, 2, 3, 4)]
    + [(Deis(order, "t"), "t") for order in (1, 2, 3)],
    ids=str,
)
def test_a_polynomial_is_integrated_exactly(sampler, coordinate, process):
    """The noise is a polynomial of the coordinate alone, of the highest degree that the order integrates."""
    where, degree = COORDINATES[coordinate], sampler.order - 1

    def noise(t):
        return (where(process, t) - 0.3) ** degree - 0.5 * where(process, t) ** (degree // 2)

    def denoise(x, t):
        alpha, sigma = process.signal(t)
        eps = jnp.broadcast_to(noise(t), x.shape)
        return Prediction((x - sigma * eps) / alpha, eps)

    times = process.time(-2 * jnp.log(jnp.asarray([3.0, 2.2, 1.9, 1.2, 0.8, 0.7])))
    x = jnp.zeros((1, 1, 1, 1))
    seen = np.ravel(walk(sampler, denoise, process, times, x)) / process.signal(times).alpha
    lam = np.log(level(process, times))
    nodes, weights = np.polynomial.legendre.leggauss(30)
    for k in range(sampler.order - 1, len(times) - 1):
        half = (lam[k + 1] - lam[k]) / 2
        u = jnp.asarray(lam[k] + half * (nodes + 1))
        exact = half * np.dot(weights, noise(process.time(-2 * u)) * np.exp(u))
        np.testing.assert_allclose(seen[k + 1] - seen[k], exact, rtol=1e-9)
        if degree:
            assert abs(noise(times[k]) * (np.exp(lam[k + 1]) - np.exp(lam[k])) - exact) > 1e-4


def test_fixed_coefficients_match_textbooks():
    """On equal steps of s, 55/24, -59/24, 37/24, -9/24 of the last four, and before that those of lower orders."""
    rng = np.random.default_rng(0)
    noise, sigma = rng.normal(size=6), np.linspace(3.0, 1.0, 6)
    times = VE.time(-2 * jnp.log(jnp.asarray(sigma)))

    def denoise(x, t):
        eps = jnp.interp(-VE.signal(t).sigma, -sigma, noise)
        return Prediction(x - VE.signal(t).sigma * eps, jnp.broadcast_to(eps, x.shape))

    rows = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    for order in (1, 2, 3, 4):
        for sampler in (AdamsBashforth(order), Lms(order)):
            seen = np.ravel(walk(sampler, denoise, VE, times, jnp.zeros((1, 1, 1, 1))))
            for k in range(5):
                row = rows[min(k, order - 1)]
                mean = sum(weight * noise[k - j] for j, weight in enumerate(row))
                np.testing.assert_allclose(seen[k + 1] - seen[k], (sigma[k + 1] - sigma[k]) * mean, rtol=1e-9)


def test_time_and_log_rho_agree_where_one_is_linear_in_the_other():
    times = GRIDS[0](VE, 6)
    found, expected = (walk(Deis(3, name), denoiser(VE), VE, times, start()) for name in ("t", "log_rho"))
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("sampler", [Lms(1), Deis(1), Deis(1, "t"), AdamsBashforth(1)], ids=str)
def test_first_order_is_ddim(sampler):
    times = GRIDS[0](VE, 5)
    found, expected = (walk(one, denoiser(VE), VE, times, start()) for one in (sampler, Ddim()))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_stretch_from_pure_noise_is_zero():
    flow = RectifiedFlow()
    t, t_next = jnp.asarray(0.8), jnp.asarray(0.5)
    np.testing.assert_allclose(stretch(flow, t, t_next), 0.5 * (1.0 - 4.0), rtol=1e-12)
    assert stretch(flow, jnp.asarray(1.0), t_next) == 0
    assert math.isinf(level(flow, jnp.asarray(1.0)))
    assert predict_from_data(flow, jnp.ones((1, 1, 1, 1)), t, jnp.zeros((1, 1, 1, 1))).noise == 1 / 0.8
