import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving, diffuse
from jaxdiff.process.schedule import Cosine, Linear
from jaxdiff.process.table import CosineBetas, LinearBetas, ScaledLinearBetas, Table
from jaxdiff.process.transition import forward, posterior_mean, posterior_std, reverse_log_variance

PROCESSES = [
    VariancePreserving(Linear()),
    VariancePreserving(Cosine()),
    VariancePreserving(Table(ScaledLinearBetas(), zero_terminal_snr=True)),
    VarianceExploding(),
    RectifiedFlow(),
]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=str)
S, T = np.array([0.02, 0.1, 0.3, 0.5, 0.02, 0.899999]), np.array([0.05, 0.4, 0.31, 0.99, 0.95, 0.9])


def a_pair():
    return map(jnp.asarray, np.random.default_rng(0).normal(size=(2, len(T), 2, 2, 1)))


@functools.partial(jax.jit, static_argnums=0)
def step_up(process, s, t):
    return process.signal(s), process.signal(t), forward(process, s, t), posterior_std(process, s, t)


def wide(values):
    return np.asarray(values)[:, None, None, None]


@pytest.mark.spread(2)
@each_process
def test_forward_steps_compose(process):
    """From 0 to s and on to t is from 0 to t."""
    s, t = jnp.asarray(S), jnp.asarray(T)
    (alpha_s, sigma_s), (alpha_t, sigma_t), step = (
        process.signal(s),
        process.signal(t),
        forward(process, s, t),
    )
    np.testing.assert_allclose(step.alpha * alpha_s, alpha_t, rtol=1e-12)
    np.testing.assert_allclose((step.alpha * sigma_s) ** 2 + step.sigma**2, sigma_t**2, rtol=1e-9)


@each_process
def test_posterior_is_bayes_rule(process):
    """Precisions add, and the mean is weighted by them: prior ``q(x_s | x_0)``, likelihood ``q(x_t | x_s)``."""
    x_0, noise = a_pair()
    s, t = jnp.asarray(S), jnp.asarray(T)
    x_t = diffuse(process, x_0, noise, t)
    at_s, _, step, std = step_up(process, s, t)
    (alpha_s, sigma_s), (alpha, sigma) = map(wide, at_s), map(wide, step)
    precision = 1 / sigma_s**2 + alpha**2 / sigma**2
    mean = (alpha_s * x_0 / sigma_s**2 + alpha * x_t / sigma**2) / precision
    np.testing.assert_allclose(wide(std), precision**-0.5, rtol=1e-6)
    np.testing.assert_allclose(posterior_mean(process, s, t, x_0, noise), mean, rtol=1e-6, atol=1e-6)


@pytest.mark.spread(3)
@each_process
def test_small_steps_keep_their_digits(process, float32):
    """Posterior and forward standard deviations differ by ``sigma_s / sigma_t`` alone, and are those of float64."""
    s, t = np.float32(0.5), np.float32(0.5001)
    with jax.enable_x64(True):
        exact = forward(process, jnp.asarray(s, jnp.float64), jnp.asarray(t, jnp.float64)).sigma
    s, t = jnp.asarray(s), jnp.asarray(t)
    np.testing.assert_allclose(forward(process, s, t).sigma, exact, rtol=2e-3)
    ratio = posterior_std(process, s, t) / forward(process, s, t).sigma
    np.testing.assert_allclose(ratio, process.signal(s).sigma / process.signal(t).sigma, rtol=1e-6)


@each_process
def test_the_reverse_variance_lies_between_its_bounds_in_logarithms(process):
    s, t = jnp.asarray(S), jnp.asarray(T)
    _, _, step, std = step_up(process, s, t)
    low, high = wide(std), wide(step.sigma)
    for share in (0.0, 0.3, 1.0, 1.2):
        fraction = jnp.full((len(T), 2, 2, 1), share)
        found = np.exp(np.asarray(reverse_log_variance(process, s, t, fraction)) / 2)
        expected = np.broadcast_to(low ** (1 - share) * high**share, found.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.spread(2)
@each_process
def test_one_time_for_all_images_is_each_ones_time(process):
    x_0, noise = a_pair()
    s, t, fraction = jnp.full(len(T), 0.2), jnp.full(len(T), 0.7), jnp.full(x_0.shape, 0.4)
    np.testing.assert_allclose(
        posterior_mean(process, s[0], t[0], x_0, noise), posterior_mean(process, s, t, x_0, noise), rtol=1e-12
    )
    np.testing.assert_allclose(
        reverse_log_variance(process, s[0], t[0], fraction),
        reverse_log_variance(process, s, t, fraction),
        rtol=1e-12,
    )


@pytest.mark.parametrize("process", [PROCESSES[2], RectifiedFlow()], ids=str)
def test_at_the_ends_nothing_is_nan(process):
    """At clean data the posterior is x_0; from pure noise it is the prior q(x_s | x_0)."""
    x_0, noise = (value[:1] for value in a_pair())
    s, zero, one = jnp.array(0.5), jnp.array(0.0), jnp.array(1.0)
    assert posterior_std(process, zero, s) == 0
    np.testing.assert_array_equal(posterior_mean(process, zero, s, x_0, noise), x_0)
    alpha, sigma = process.signal(s)
    assert posterior_std(process, s, one) == sigma
    np.testing.assert_allclose(posterior_mean(process, s, one, x_0, noise), alpha * x_0, rtol=1e-12)
    assert forward(process, s, one) == (0, 1)
    assert forward(process, s, s) == (1, 0)


@pytest.mark.spread(3)
@pytest.mark.parametrize(("name", "betas"), [("linear", LinearBetas()), ("cosine", CosineBetas())])
@pytest.mark.parametrize("spacing", ["T1000_25", "T1000_ddim25", "T1000_10-10-10"])
def test_respaced_betas_recompose(name, betas, spacing):
    """A step over several steps of a model equals guided-diffusion's with recomputed betas."""
    goldens = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "tables.npz")
    t = (goldens[f"guided/respace/{spacing}/timesteps"].astype(float) + 1) / 1000
    s = np.concatenate([[0.0], t[:-1]])
    found = step_up(VariancePreserving(Table(betas)), jnp.asarray(s), jnp.asarray(t))[2].sigma ** 2
    np.testing.assert_allclose(found, goldens[f"guided/respace/{spacing}/{name}/betas"], rtol=1e-9)
