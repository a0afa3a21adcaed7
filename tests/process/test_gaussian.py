import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving, diffuse
from jaxdiff.process.schedule import Cosine, Laplace, Linear, ScaledLinear, Shifted, Sigmoid
from jaxdiff.process.table import CosineBetas, Table

PROCESSES = [
    VariancePreserving(Linear()),
    VariancePreserving(Cosine()),
    VariancePreserving(ScaledLinear()),
    VariancePreserving(Shifted(Sigmoid(), -1.0)),
    VariancePreserving(Laplace()),
    VariancePreserving(Table(CosineBetas(), zero_terminal_snr=True)),
    VarianceExploding(),
    RectifiedFlow(),
]


@pytest.mark.spread(2)
@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_log_snr_follows_from_the_signal(process):
    t = jnp.asarray(np.linspace(0.001, 0.999, 201))
    alpha, sigma = process.signal(t)
    np.testing.assert_allclose(
        2 * np.log(np.asarray(alpha) / sigma), process.log_snr(t), rtol=1e-9, atol=1e-9
    )
    np.testing.assert_allclose(process.time(process.log_snr(t)), t, rtol=1e-9)


@pytest.mark.parametrize("process", PROCESSES[:-2], ids=str)
def test_variance_is_preserved(process):
    alpha, sigma = process.signal(jnp.asarray(np.linspace(0.0, 1.0, 201)))
    np.testing.assert_allclose(np.square(alpha) + np.square(sigma), 1, rtol=1e-14)


def test_variance_explodes_from_sigma_min_to_sigma_max():
    alpha, sigma = VarianceExploding(0.01, 50.0).signal(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(alpha, 1)
    np.testing.assert_allclose(sigma, [0.01, 50.0], rtol=1e-12)


def test_flow_has_exact_ends():
    flow = RectifiedFlow()
    alpha, sigma = flow.signal(jnp.array([0.0, 1.0]))
    assert alpha.tolist() == [1, 0]
    assert sigma.tolist() == [0, 1]
    assert flow.log_snr(jnp.array([0.0, 1.0])).tolist() == [np.inf, -np.inf]
    assert flow.time(jnp.array([np.inf, -np.inf])).tolist() == [0, 1]


@pytest.mark.spread(3)
@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_single_precision_keeps_the_digits_of_a_small_sigma(process, float32):
    t = np.logspace(-5, -1, 201).astype(np.float32)
    with jax.enable_x64(True):
        exact = process.signal(jnp.asarray(t, jnp.float64))
    for found, truth in zip(process.signal(jnp.asarray(t)), exact, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, truth, rtol=1e-4)


@pytest.mark.spread(3)
@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_diffuse_mixes_each_image_at_its_own_time(process):
    x_0, noise = map(jnp.asarray, np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2)))
    t = jnp.array([0.1, 0.5, 0.9])
    alpha, sigma = map(np.asarray, process.signal(t))
    together = np.asarray(diffuse(process, x_0, noise, t))
    for i in range(3):
        np.testing.assert_allclose(
            together[i], alpha[i] * np.asarray(x_0)[i] + sigma[i] * np.asarray(noise)[i], rtol=1e-14
        )
    np.testing.assert_allclose(
        np.asarray(diffuse(process, x_0, noise, jnp.asarray(0.5)))[1], together[1], rtol=1e-14
    )
