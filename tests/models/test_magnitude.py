"""Magnitude-preserving layers: unit variance is kept by every layer, for any number of channels."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.magnitude import MagnitudeClassLabel, MagnitudeNoiseLevel
from jaxdiff.embeddings import merge
from jaxdiff.errors import UserError
from jaxdiff.models.magnitude import (
    MagnitudeConv,
    MagnitudeDense,
    MagnitudeFourier,
    MagnitudeUncertainty,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
    unit_init,
)

QUICK = {"xla_backend_optimization_level": 0}


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def made(module, *inputs, seed=0):
    """Initial parameters."""
    return nn.meta.unbox(module.init(jax.random.key(seed, impl="rbg"), *inputs))


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def run(module, params, *inputs):
    return module.apply(params, *inputs)


def variance(x):
    return float(np.mean(np.square(np.asarray(x, np.float64))))


@pytest.mark.spread(2)
@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize(
    "layer",
    [MagnitudeDense(256), MagnitudeConv(256), MagnitudeConv(256, size=1)],
    ids=["dense", "3x3", "1x1"],
)
def test_a_layer_keeps_the_variance_whatever_its_fan_in(layer, channels):
    x = normal(64, channels) if isinstance(layer, MagnitudeDense) else normal(2, 34, 34, channels)
    params = made(layer, x)
    out = run(layer, params, x)
    out = out if out.ndim == 2 else out[:, 1:-1, 1:-1]  # at the border there are zeros in the sum
    assert variance(out) == pytest.approx(1, abs=0.06)
    np.testing.assert_allclose(run(layer, params, x, 3.0), 3 * run(layer, params, x), rtol=1e-5, atol=1e-5)


def test_activation_sum_and_concatenation_keep_the_variance():
    a, b = normal(4096, 24, seed=1), normal(4096, 40, seed=2)
    assert variance(mp_silu(normal(2**18))) == pytest.approx(1, abs=0.01)
    for balance in (0.1, 0.3, 0.5):
        assert variance(mp_sum(a, b[:, :24], balance)) == pytest.approx(1, abs=0.02)
        joined = mp_cat(a, b, balance)
        assert variance(joined) == pytest.approx(1, abs=0.02)
        share = 24 * variance(joined[:, :24]) / (64 * variance(joined))
        assert share == pytest.approx((1 - balance) ** 2 / ((1 - balance) ** 2 + balance**2), abs=0.01)


def test_a_sum_is_weighted_by_its_balance():
    one, zero = jnp.ones(3), jnp.zeros(3)
    np.testing.assert_allclose(mp_sum(one, zero, 0.3), 0.7 / 0.58**0.5, rtol=1e-6)
    np.testing.assert_allclose(mp_sum(zero, one, 0.3), 0.3 / 0.58**0.5, rtol=1e-6)


def test_features_and_conditions_have_unit_variance_also_together():
    labels = jnp.linspace(-1.5, 1.1, 64)
    fourier = MagnitudeFourier(1024)
    assert variance(run(fourier, made(fourier, labels), labels)) == pytest.approx(1, abs=0.05)
    noise, label = MagnitudeNoiseLevel(256, 128, scale=2**-0.5), MagnitudeClassLabel(64, 256)
    classes, drop = jnp.arange(64), jnp.zeros(64, bool)
    parts = [
        run(noise, made(noise, labels), labels),
        run(label, made(label, classes, drop, seed=1), classes, drop),
    ]
    assert [variance(part.vector) for part in parts] == pytest.approx([0.5, 0.5], abs=0.03)
    assert variance(merge(parts).vector) == pytest.approx(1, abs=0.06)


def test_a_class_embedding_is_the_layer_of_a_scaled_unit_vector():
    label, dense = MagnitudeClassLabel(10, 16, scale=1.0), MagnitudeDense(16)
    params = {"params": {"weight": normal(10, 16)}}
    labels = jnp.asarray([7, 0, 9])
    drop = jnp.asarray([False, True, False])
    scaled = 10**0.5 * jax.nn.one_hot(labels, 10)
    expected = np.asarray(run(dense, params, scaled)) * [[1.0], [0.0], [1.0]]
    np.testing.assert_allclose(run(label, params, labels, drop).vector, expected, rtol=1e-5, atol=1e-6)
    mixed = run(label, params, jax.nn.one_hot(labels, 10), drop)
    np.testing.assert_allclose(mixed.vector, expected, rtol=1e-5, atol=1e-6)
    for wrong in (-1, 10):
        assert np.all(np.isnan(run(label, params, jnp.full(3, wrong), jnp.zeros(3, bool)).vector))


def test_pixels_are_normalised_and_zeros_have_no_slope():
    x = normal(2, 4, 4, 16) * normal(2, 4, 4, 1, seed=1)
    np.testing.assert_allclose(np.mean(np.square(normalize(x)), -1), 1, rtol=2e-2)
    np.testing.assert_allclose(
        normalize(x, eps=0.0), x / np.sqrt(np.mean(x**2, -1, keepdims=True)), rtol=1e-5
    )
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(normalize(x)))(jnp.zeros((1, 4)))))
    half = normalize(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), normalize(x), rtol=2**-7, atol=1e-6)


@pytest.mark.slow
def test_gradients_are_orthogonal_to_weights():
    layer, x = MagnitudeConv(8), normal(2, 6, 6, 5)
    params = made(layer, x)
    weight = params["params"]["weight"]
    scale = jnp.linspace(0.5, 200.0, 8)[None, None, None]
    longer = {"params": {"weight": weight * scale}}
    np.testing.assert_allclose(run(layer, longer, x), run(layer, params, x), rtol=1e-3, atol=1e-4)

    def loss(params):
        return jnp.sum(jnp.sin(layer.apply(params, x)))

    grad = jax.grad(loss)(params)["params"]["weight"]
    along = jnp.sum(grad * weight, (0, 1, 2)) / jnp.linalg.norm(grad.reshape(-1, 8), axis=0)
    assert np.max(np.abs(along)) < 2e-4 * np.sqrt(weight[..., 0].size)
    assert np.max(np.abs(grad)) > 1e-2


@pytest.mark.parametrize("shape", [(7, 5), (3, 3, 4, 6)])
def test_initial_weights_have_unit_columns(shape):
    weight = unit_init(jax.random.key(0), shape)
    np.testing.assert_allclose(np.mean(np.square(weight.reshape(-1, shape[-1])), 0), 1, rtol=1e-6)
    assert weight.dtype == jnp.float32


def test_frequencies_and_phases_are_constant():
    head = MagnitudeUncertainty(8)
    labels = jnp.asarray([-0.3, 0.9])
    params = made(head, labels)
    assert run(head, params, labels).shape == (2,)
    grads = jax.grad(lambda params: jnp.sum(head.apply(params, labels)))(params)["params"]
    assert not np.any(grads["fourier"]["frequencies"])
    assert not np.any(grads["fourier"]["phases"])
    assert np.any(grads["linear"]["weight"])


def test_parameters_are_float32_with_named_axes_whatever_is_computed_in():
    layers = [(MagnitudeConv(4, dtype="bfloat16"), (1, 4, 4, 3)), (MagnitudeDense(4, "bfloat16"), (1, 3))]
    for layer, shape in layers:
        x = normal(*shape)
        out, boxed = jax.eval_shape(functools.partial(layer.init_with_output, jax.random.key(0)), x)
        box = boxed["params"]["weight"]
        assert box.value.dtype == jnp.float32
        assert box.names[-2:] == ("channels_in", "channels_out")
        assert out.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MagnitudeNoiseLevel(0, 4), "width=0"),
        (lambda: MagnitudeNoiseLevel(4, 0), "frequencies=0"),
        (lambda: MagnitudeNoiseLevel(4, 4, bandwidth=0.0), "bandwidth=0.0"),
        (lambda: MagnitudeNoiseLevel(4, 4, scale=0.0), "scale=0.0"),
        (lambda: MagnitudeClassLabel(0, 4), "num_classes=0"),
        (lambda: MagnitudeClassLabel(4, 0), "width=0"),
        (lambda: MagnitudeClassLabel(4, 4, drop_rate=1.0), "drop_rate=1.0"),
        (lambda: MagnitudeClassLabel(4, 4, scale=-1.0), "scale=-1.0"),
        (lambda: MagnitudeClassLabel(4, 4).check([5]), "label=5"),
        (lambda: MagnitudeUncertainty(0), "width=0"),
    ],
)
def test_impossible_settings_are_errors(make, message):
    with pytest.raises(UserError, match=message):
        make()
