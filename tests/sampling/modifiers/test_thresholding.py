import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding
from jaxdiff.sampling.modifiers.thresholding import DynamicThreshold, StaticThreshold
from jaxdiff.sampling.protocols import stateless
from tests.oracles import predict_from_data

FLOW = RectifiedFlow()
KEYS = jax.random.split(jax.random.key(0), 3)
X, X_0 = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 2)) * [[[[[1.0]]]], [[[[2.0]]]]]
X_0[1] *= 0.1  # an image in range
T = 0.6


def modified(modifier, process=FLOW, x_0=X_0):
    def denoise(x, t):
        found = predict_from_data(process, x, t, jnp.asarray(x_0[: x.shape[0]]))
        return found._replace(variance_fraction=jnp.ones_like(x))

    found = modifier(stateless(denoise), process, {}, KEYS)(jnp.asarray(X[: len(x_0)]), jnp.asarray(T))
    alpha, sigma = process.signal(jnp.asarray(T))
    np.testing.assert_allclose(alpha * found.x_0 + sigma * found.noise, X[: len(x_0)], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(found.variance_fraction, 1.0)
    return np.asarray(found.x_0)


@pytest.mark.parametrize("process", [RectifiedFlow(), VarianceExploding()], ids=str)
def test_a_clipped_image_keeps_the_noisy_image(process):
    np.testing.assert_array_equal(modified(StaticThreshold(1.5), process), np.clip(X_0, -1.5, 1.5))


def test_the_dynamic_threshold_is_imagens_for_each_image():
    found = modified(DynamicThreshold(0.9))
    for image, expected in zip(found, X_0, strict=True):
        s = max(np.quantile(np.abs(expected), 0.9), 1.0)
        np.testing.assert_allclose(image, np.clip(expected, -s, s) / s, rtol=1e-12)
    np.testing.assert_allclose(found[1], X_0[1], rtol=1e-12)
    assert np.abs(found).max() == pytest.approx(1.0)
    np.testing.assert_allclose(modified(DynamicThreshold(0.9), x_0=X_0[:1]), found[:1], rtol=1e-12)


def test_another_limit_is_another_unit():
    found = modified(DynamicThreshold(0.9, limit=3.0), x_0=3 * X_0)
    np.testing.assert_allclose(found, 3 * modified(DynamicThreshold(0.9)), rtol=1e-9)


@pytest.mark.parametrize("modifier", [StaticThreshold(0.5), DynamicThreshold(0.9, 2.0)], ids=str)
def test_configs_build_the_same_modifier(modifier):
    assert build(from_json(to_json(describe(modifier)))) == modifier


def test_invalid_limits_are_refused():
    for cls in (StaticThreshold, DynamicThreshold):
        with pytest.raises(UserError, match=r"limit=0.0"):
            cls(limit=0.0)
    for share in (0.0, 99.5):
        with pytest.raises(UserError, match="percentile"):
            DynamicThreshold(share)
