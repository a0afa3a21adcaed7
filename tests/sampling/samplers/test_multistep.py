"""Multistep solvers: their common functions, and properties of each solver."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, Signal
from jaxdiff.sampling.grids import continuous as grids
from jaxdiff.sampling.loop import integrate, sample
from jaxdiff.sampling.protocols import SamplerState, stateless
from jaxdiff.sampling.samplers.adams import AdamsBashforth, Deis, Lms
from jaxdiff.sampling.samplers.adaptive import Rk45, RungeKutta4
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.multistep import exponential_moments, integrals, reciprocals
from jaxdiff.sampling.samplers.pndm import Plms, Pndm
from jaxdiff.sampling.samplers.sa_solver import SaSolver
from jaxdiff.sampling.samplers.unipc import UniPc
from tests.oracles import Counting, Gaussian
from tests.sampling.solving import GRIDS, OTHERS, POINTS, VE, denoiser, gaussian, start, walk

SAMPLERS = [
    UniPc(3),
    UniPc(3, "bh1", integrand="noise"),
    UniPc(3, corrector=False),
    SaSolver(2, 3, tau=0.0),
    Lms(4),
    Deis(3),
    Deis(3, "t"),
    AdamsBashforth(4),
    Plms(),
    Pndm(),
]
IN_TIME = (Deis(3, "t"), Pndm())
"""Those whose steps depend on how a process runs through its noise levels."""
REMEMBER_NOISE = (Deis(3, "t"), AdamsBashforth(4), Plms())
"""Solvers for which pure noise is not infinitely far away. (The second step of Pndm needs no history.)"""
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=str)


def go(sampler, denoise, process, times, x):
    """`walk`, without recompiling branches at every step."""
    with jax.disable_jit(isinstance(sampler, Pndm)):
        return walk(sampler, denoise, process, times, x)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_integrals_are_those_of_the_interpolating_polynomial(count):
    """Against numpy's polynomial through the same points; the moments are any functional of polynomials."""
    rng = np.random.default_rng(count)
    lengths, moments, values = (
        rng.uniform(0.3, 2, count),
        rng.normal(size=count + 1),
        rng.normal(size=count + 1),
    )
    r = reciprocals(jnp.asarray(0.7), [jnp.asarray(one) for one in lengths])
    tau = np.append(0.0, -np.cumsum(lengths) / 0.7)
    coefficients = np.polynomial.polynomial.polyfit(tau, values, count)
    found = integrals(r, [jnp.asarray(moment) for moment in moments])
    # The constant polynomial has its own moment, and L_j are without constants.
    expected = np.dot(coefficients[1:], moments[1:])
    np.testing.assert_allclose(np.dot(found, values[1:] - values[0]), expected, rtol=1e-9)


@pytest.mark.parametrize("known", [0, 1, 2])
def test_predictions_at_infinite_noise_are_ignored(known):
    lengths = [jnp.asarray(one) for one in (0.4, 0.9, 0.5)[:known]]
    moments = [jnp.asarray(one) for one in (0.3, -1.2, 0.8, 0.1)]
    found = integrals(
        reciprocals(jnp.asarray(0.7), [*lengths, *[jnp.asarray(np.inf)] * (3 - known)]), moments
    )
    expected = integrals(reciprocals(jnp.asarray(0.7), lengths), moments)
    np.testing.assert_allclose(found, [*expected, *[0.0] * (3 - known)], rtol=1e-12)


@pytest.mark.parametrize("integrand", ["x_0", "noise"])
@pytest.mark.parametrize("h", [0.0, 1e-4, 0.3, 0.999, 1.001, 4.0])
def test_exponential_moments_are_the_integrals(integrand, h):
    """Of ``alpha exp(lambda - lambda_next) tau^k`` for x_0, of ``-sigma exp(lambda_next - lambda) tau^k`` for noise."""
    signal = Signal(jnp.asarray(0.6), jnp.asarray(0.8))
    found = exponential_moments(integrand, signal, jnp.asarray(h), 5)
    factor, sign = (0.6, -1) if integrand == "x_0" else (-0.8, 1)

    def integrand_of(k):
        return lambda tau: math.exp(sign * h * (1 - tau)) * tau**k

    expected = [factor * h * quad(integrand_of(k), 0, 1, epsabs=1e-14)[0] for k in range(5)]
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.spread(2)
@pytest.mark.parametrize("process", OTHERS, ids=str)
@pytest.mark.parametrize("sampler", [one for one in SAMPLERS if one not in IN_TIME], ids=str)
def test_every_process_gives_the_same_path(sampler, process):
    x = start()
    first, last = process.signal(GRIDS[0](process, 2)).alpha
    expected = go(sampler, denoiser(VE), VE, GRIDS[0](VE, 6), x)[-1]
    found = go(sampler, denoiser(process), process, GRIDS[0](process, 6), first * x)[-1]
    np.testing.assert_allclose(found / last, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.spread(3)
@each_sampler
def test_a_single_image_is_reached_exactly_from_pure_noise(sampler):
    """Image and noise are constant along the path; nothing is divided by alpha = 0."""
    x, flow, oracle = start()[:POINTS], RectifiedFlow(), Gaussian(gaussian().mean, jnp.zeros(()))
    times = grids.Uniform()(flow, 6)
    found = go(sampler, oracle.denoiser(flow), flow, times, x)[-1]
    np.testing.assert_allclose(found, oracle.flow(flow, x, times[0], times[-1]), rtol=1e-9, atol=1e-9)


@each_sampler
def test_from_pure_noise_the_first_step_is_an_euler_step(sampler):
    """Where pure noise is infinitely far away, the second step has no history either."""
    flow, x = RectifiedFlow(), start()[:POINTS]
    times, denoise = jnp.asarray([1.0, 0.8, 0.6]), gaussian().denoiser(flow)
    _, second, third = go(sampler, denoise, flow, times, x)
    np.testing.assert_allclose(second, walk(Ddim(), denoise, flow, times[:2], x)[-1], rtol=1e-12)
    again = go(sampler, denoise, flow, times[1:], jnp.asarray(second))[-1]
    assert (sampler not in REMEMBER_NOISE) == np.allclose(third, again, rtol=1e-12)


def test_the_last_step_is_the_predicted_image():
    """Also for correctors: the last correction needs no further call."""
    sampler = UniPc(3)
    x, denoise, times = start()[:POINTS], gaussian().denoiser(VE), GRIDS[0](VE, 3)
    keys = jax.random.split(jax.random.key(0), POINTS)
    before = integrate(sampler, denoise, VE, times, x, keys)
    found = sample(sampler, denoise, VE, times, x, keys)
    np.testing.assert_allclose(found, denoise(before, times[-1]).x_0, rtol=1e-12)


@pytest.mark.spread(5)
@each_sampler
def test_calls_are_counted(sampler):
    for steps in (1, 5):
        denoise = Counting(gaussian().denoiser(VE))
        go(sampler, denoise, VE, GRIDS[0](VE, steps + 1), start()[:POINTS])
        assert denoise.calls == sampler.calls(steps)
    assert sampler.calls(10) == 10 + {Pndm: 9, Plms: 1}.get(type(sampler), 0)


@pytest.mark.spread(5)
@each_sampler
def test_returning_to_noise_resets_the_history(sampler):
    """The loop then starts a new history, so that the next step is a first step."""
    denoise, x, times = stateless(gaussian().denoiser(VE)), start()[:POINTS], GRIDS[0](VE, 5)
    fresh = go(sampler, denoise, VE, times[3:], x)[-1]
    with jax.disable_jit(isinstance(sampler, Pndm)):
        state = sampler.init(3 * x)
        for k in range(3):
            state = sampler.step(denoise.call, VE, state, times[k], times[k + 1], keys())
        found = [
            sampler.step(denoise.call, VE, SamplerState(x, history), times[3], times[4], keys()).x
            for history in (sampler.init(x).history, state.history)
        ]
    np.testing.assert_array_equal(found[0], fresh)
    assert np.abs(found[1] - fresh).max() > 1e-3


def keys():
    return jax.random.split(jax.random.key(0), POINTS)


@pytest.mark.parametrize("sampler", [UniPc(3)], ids=str)
def test_single_precision_is_enough(sampler, float32):
    x = start()[:POINTS].astype(jnp.float32)
    found = integrate(sampler, denoise_32(), VE, grids.Karras(0.002, 80.0)(VE, 12), 8 * x, keys())
    assert found.dtype == jnp.float32
    with jax.enable_x64(True):
        times, x = grids.Karras(0.002, 80.0)(VE, 12), jnp.asarray(x, jnp.float64)
        exact = integrate(sampler, gaussian().denoiser(VE), VE, times, 8 * x, keys())
    np.testing.assert_allclose(found, exact, atol=2e-4)


def denoise_32():
    oracle = gaussian()
    return Gaussian(oracle.mean.astype(jnp.float32), oracle.std.astype(jnp.float32)).denoiser(VE)


@pytest.mark.parametrize("sampler", [*SAMPLERS, SaSolver(), RungeKutta4(), Rk45()], ids=str)
def test_a_config_gives_the_same_sampler(sampler):
    assert build(from_json(to_json(describe(sampler)))) == sampler


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: UniPc(0), "order"),
        (lambda: UniPc(4), "order"),
        (lambda: UniPc(variant="bh3"), "variant"),
        (lambda: UniPc(integrand="v"), "integrand"),
        (lambda: SaSolver(0), "predictor_order"),
        (lambda: SaSolver(5), "predictor_order"),
        (lambda: SaSolver(corrector_order=1), "corrector_order"),
        (lambda: SaSolver(corrector_order=5), "corrector_order"),
        (lambda: SaSolver(tau=-0.1), "tau"),
        (lambda: SaSolver(tau_min=1.0, tau_max=1.0), "tau_max"),
        (lambda: SaSolver(integrand="v"), "integrand"),
        (lambda: SaSolver(rule="bh3"), "rule"),
        (lambda: Lms(0), "order"),
        (lambda: AdamsBashforth(5), "order"),
        (lambda: Deis(coordinate="rho"), "coordinate"),
        (lambda: Rk45(rtol=-1e-3), "rtol"),
        (lambda: Rk45(atol=0.0), "atol"),
        (lambda: Rk45(max_calls=6), "max_calls"),
    ],
)
def test_impossible_settings_are_named(make, field):
    with pytest.raises(UserError, match=f"^{field}="):
        make()
