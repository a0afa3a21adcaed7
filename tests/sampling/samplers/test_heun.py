import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.prediction import Prediction
from jaxdiff.process.schedule import Linear
from jaxdiff.sampling.noise import noise_like
from jaxdiff.sampling.protocols import stateless
from jaxdiff.sampling.samplers.heun import MAX_CHURN, Euler, Heun
from tests.oracles import Gaussian

PROCESSES = [VariancePreserving(Linear()), VarianceExploding(), RectifiedFlow()]


def first_call(sampler, process, t):
    """The first call of the denoiser in a step from t: (x, keys, its images, its time)."""
    x, seen = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2, 1))), []
    keys = jax.random.split(jax.random.key(3), 3)

    def denoise(x, t):
        seen.append((np.asarray(x), t))
        return Prediction(x, x)

    sampler.step(
        stateless(denoise).call,
        process,
        sampler.init(x),
        jnp.asarray(t, x.dtype),
        jnp.asarray(t / 2, x.dtype),
        keys,
    )
    assert len(seen) == sampler.calls(1)
    return np.asarray(x), keys, *seen[0]


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("kind", [Euler, Heun])
def test_churn_adds_the_noise_of_the_denoisers_level(kind, process):
    t = 0.4
    x, keys, x_hat, t_hat = first_call(kind(churn=0.3, noise_scale=1.1), process, t)
    alpha, sigma = map(np.asarray, process.signal(jnp.asarray(t)))
    alpha_hat, sigma_hat = map(np.asarray, process.signal(t_hat))
    s, s_hat = sigma / alpha, sigma_hat / alpha_hat
    np.testing.assert_allclose(s_hat, 1.3 * s, rtol=1e-9)
    z = np.asarray(noise_like(keys, jnp.asarray(x)))
    expected = x / alpha + np.sqrt(s_hat**2 - s**2) * 1.1 * z
    np.testing.assert_allclose(x_hat / alpha_hat, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "sampler", [Heun(), Heun(churn=0.3, churn_min=1e3), Heun(churn=0.3, churn_max=1e-3)], ids=str
)
def test_no_churn_outside_its_levels(sampler):
    x, _, x_hat, t_hat = first_call(sampler, RectifiedFlow(), 0.4)
    np.testing.assert_array_equal(x_hat, x)
    assert t_hat == 0.4


def test_pure_noise_cannot_be_churned():
    x, _, x_hat, t_hat = first_call(Heun(churn=0.3), RectifiedFlow(), 1.0)
    np.testing.assert_array_equal(x_hat, x)
    assert t_hat == 1


@pytest.mark.parametrize("kind", [Euler, Heun])
def test_gradients_reach_pure_noise_through_a_step_that_churns(kind):
    """What is not selected, the churned data, must not make the gradient NaN."""
    flow, x = RectifiedFlow(), jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2, 1)))
    denoise = stateless(Gaussian(jnp.asarray(0.3), jnp.asarray(0.5)).denoiser(flow)).call
    keys, t, t_next = jax.random.split(jax.random.key(3), 3), jnp.asarray(1.0), jnp.asarray(0.7)

    def gradient(sampler):
        return jax.grad(lambda x: jnp.sum(sampler.step(denoise, flow, sampler.init(x), t, t_next, keys).x))(x)

    np.testing.assert_allclose(gradient(kind(churn=0.3)), gradient(kind()), rtol=1e-12)


def test_from_pure_noise_the_step_is_an_euler_step():
    flow, x = RectifiedFlow(), jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2, 1)))
    denoise = Gaussian(jnp.asarray(0.3), jnp.asarray(0.5)).denoiser(flow)
    keys = jax.random.split(jax.random.key(3), 3)
    t, t_next = jnp.asarray(1.0, x.dtype), jnp.asarray(0.7, x.dtype)
    found, expected = (
        one.step(stateless(denoise).call, flow, one.init(x), t, t_next, keys).x for one in (Heun(), Euler())
    )
    np.testing.assert_array_equal(found, expected)


def test_a_total_over_all_steps_is_refused():
    for kind in (Euler, Heun):
        with pytest.raises(UserError, match="divide S_churn by the steps"):
            kind(churn=40.0)


def test_the_most_churn_is_accepted():
    assert Heun(churn=MAX_CHURN).churn == MAX_CHURN
