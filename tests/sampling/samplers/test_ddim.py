import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.prediction import Prediction
from jaxdiff.process.schedule import Cosine, Linear
from jaxdiff.sampling.noise import noise_like
from jaxdiff.sampling.protocols import stateless
from jaxdiff.sampling.samplers.ddim import Ddim, EulerAncestral
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver1, DpmSolver2M
from jaxdiff.sampling.samplers.heun import Euler

PROCESSES = [
    VariancePreserving(Linear()),
    VariancePreserving(Cosine()),
    VarianceExploding(),
    RectifiedFlow(),
]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=str)


def a_step(sampler, process, t=0.7, t_next=0.4, seed=5):
    """One step with an arbitrary prediction: (x_t, predicted image, x_next, the noise it may use)."""
    x_t, x_0 = map(jnp.asarray, np.random.default_rng(0).normal(size=(2, 3, 2, 2, 1)))
    keys = jax.random.split(jax.random.key(seed), 3)
    t, t_next = jnp.asarray(t, x_t.dtype), jnp.asarray(t_next, x_t.dtype)
    alpha, sigma = process.signal(t)

    def denoise(x, t):
        return Prediction(x_0, (x_t - alpha * x_0) / sigma)

    x_next = sampler.step(stateless(denoise).call, process, sampler.init(x_t), t, t_next, keys).x
    return tuple(map(np.asarray, (x_t, x_0, x_next, noise_like(keys, x_t))))


def levels(process, *times):
    return [tuple(float(value) for value in process.signal(jnp.asarray(t))) for t in times]


@each_process
def test_without_noise_it_is_euler_and_first_order_dpm_solver(process):
    x_t, x_0, x_next, _ = a_step(Ddim(0.0), process)
    np.testing.assert_allclose(a_step(Euler(), process)[2], x_next, rtol=1e-12, atol=1e-12)
    for solver in (DpmSolver1(), DpmSolver1(integrand="noise"), DpmSolver2M()):
        np.testing.assert_allclose(a_step(solver, process)[2], x_next, rtol=1e-12, atol=1e-12)
    (alpha, sigma), (alpha_next, sigma_next) = levels(process, 0.7, 0.4)
    h = np.log(alpha_next / sigma_next) - np.log(alpha / sigma)
    dpm_solver = sigma_next / sigma * x_t - alpha_next * np.expm1(-h) * x_0
    np.testing.assert_allclose(x_next, dpm_solver, rtol=1e-9, atol=1e-9)
    s, s_next = sigma / alpha, sigma_next / alpha_next
    slope = (x_t / alpha - x_0) / s
    np.testing.assert_allclose(
        x_next, alpha_next * (x_t / alpha + (s_next - s) * slope), rtol=1e-9, atol=1e-9
    )


@each_process
def test_eta_1_draws_from_the_posterior_of_bayes(process):
    """q(x_next | x_t, x_0) from the product of q(x_next | x_0) and q(x_t | x_next): precisions add."""
    x_t, x_0, x_next, z = a_step(Ddim(1.0), process)
    (alpha, sigma), (alpha_next, sigma_next) = levels(process, 0.7, 0.4)
    ratio = alpha / alpha_next
    variance_of_step = sigma**2 - ratio**2 * sigma_next**2
    precision = 1 / sigma_next**2 + ratio**2 / variance_of_step
    mean = (alpha_next * x_0 / sigma_next**2 + ratio * x_t / variance_of_step) / precision
    np.testing.assert_allclose(x_next, mean + z / np.sqrt(precision), rtol=1e-7, atol=1e-7)


@each_process
def test_any_eta_keeps_the_noise_level(process):
    x_t, x_0, x_next, z = a_step(Ddim(0.4), process)
    (alpha, sigma), (alpha_next, sigma_next) = levels(process, 0.7, 0.4)
    fresh = 0.4**2 * (1 - (alpha * sigma_next / (sigma * alpha_next)) ** 2)
    noise = (x_t - alpha * x_0) / sigma
    expected = alpha_next * x_0 + sigma_next * (np.sqrt(1 - fresh) * noise + np.sqrt(fresh) * z)
    np.testing.assert_allclose(x_next, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_is_a_fraction(eta):
    with pytest.raises(UserError, match="eta="):
        Ddim(eta)


@pytest.mark.parametrize(
    "sampler",
    [Ddim(0.0), Ddim(0.4), Ddim(1.0), EulerAncestral(0.0), EulerAncestral(0.4), EulerAncestral(1.0)],
    ids=str,
)
def test_a_sampler_draws_if_and_only_if_its_steps_depend_on_the_keys(sampler):
    x_next, other = (a_step(sampler, VarianceExploding(), seed=seed)[2] for seed in (5, 6))
    assert np.any(x_next != other) == sampler.draws
