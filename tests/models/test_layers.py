"""Layers against plain formulas: values, gradients, precision."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdiff.errors import UserError
from jaxdiff.models.group_norm import group_count, group_norm
from jaxdiff.models.layers import Conv, GroupNorm, check_dtype

GROUPS, EPS = 4, 1e-5


def arguments(dtype="float32", mean=0.0, batch=3, pixels=10, channels=8):
    key_x, key_gamma, key_beta = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(key_x, (batch, pixels, channels), dtype) * 1.5 + mean
    gamma = 1 + 0.3 * jax.random.normal(key_gamma, (batch, channels), jnp.promote_types(dtype, "float32"))
    beta = 0.5 * jax.random.normal(key_beta, (batch, channels), gamma.dtype)
    return x, gamma, beta


@functools.partial(jax.jit, static_argnums=3)
def reference(x, gamma, beta, silu):
    """As torch.nn.functional.group_norm states it."""
    batch, pixels, channels = x.shape
    split = x.reshape(batch, pixels, GROUPS, channels // GROUPS)
    mean = split.mean((1, 3), keepdims=True)
    variance = jnp.square(split - mean).mean((1, 3), keepdims=True)
    y = ((split - mean) / jnp.sqrt(variance + EPS)).reshape(x.shape) * gamma[:, None] + beta[:, None]
    return y / (1 + jnp.exp(-y)) if silu else y


@functools.partial(jax.jit, static_argnums=3)
def ours(x, gamma, beta, silu):
    return group_norm(x, gamma, beta, GROUPS, EPS, silu)


@pytest.mark.parametrize("silu", [True, False])
def test_group_norm_is_the_formula_in_value_and_gradient(silu):
    with jax.enable_x64(True):
        inputs = arguments("float64", mean=2.0)
        weight = jax.random.normal(jax.random.key(1), inputs[0].shape, "float64")

        def loss(norm, *inputs):
            return jnp.sum(weight * norm(*inputs, silu))

        np.testing.assert_allclose(ours(*inputs, silu), reference(*inputs, silu), rtol=1e-12, atol=1e-12)
        for got, want in zip(
            jax.jit(jax.grad(functools.partial(loss, ours), (0, 1, 2)))(*inputs),
            jax.jit(jax.grad(functools.partial(loss, reference), (0, 1, 2)))(*inputs),
            strict=True,
        ):
            np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)


def test_group_norm_gradients_are_finite_differences():
    with jax.enable_x64(True):
        inputs = arguments("float64", batch=2, pixels=3)
        check_grads(lambda *inputs: ours(*inputs, True), inputs, 1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_group_norm_survives_a_large_mean():
    inputs = arguments(mean=1000.0)
    with jax.enable_x64(True):
        want = reference(*(np.asarray(value, np.float64) for value in inputs), False)
    # Float32 numbers near 1000 are 6e-5 apart: that much of x is rounded, divided by its deviation of 1.5.
    np.testing.assert_allclose(ours(*inputs, False), want, atol=3e-4)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(ours(x, *inputs[1:], True)))))(inputs[0])
    with jax.enable_x64(True):
        exact = [np.asarray(value, np.float64) for value in inputs]
        want = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(reference(x, *exact[1:], True)))))(exact[0])
    np.testing.assert_allclose(grad, want, atol=1e-3)


def test_group_norm_of_bfloat16_has_float32_statistics():
    x, gamma, beta = arguments("bfloat16", mean=3.0, pixels=4096)
    want = reference(x.astype("float32"), gamma, beta, True)
    got = ours(x, gamma, beta, True)
    assert got.dtype == jnp.bfloat16
    # Only the output is rounded (8 bits): statistics in bfloat16 would stall after a few hundred pixels.
    np.testing.assert_allclose(got.astype("float32"), want, rtol=2**-8, atol=1e-5)


def test_a_constant_image_has_a_finite_norm_and_gradient():
    x, gamma, beta = jnp.ones((1, 9, 8)), jnp.ones((1, 8)), jnp.zeros((1, 8))
    assert jnp.all(ours(x, gamma, beta, False) == 0)
    assert jnp.all(jnp.isfinite(jax.jit(jax.grad(lambda x: jnp.sum(ours(x, gamma, beta, True) ** 2)))(x)))


def test_group_norm_layer_scales_and_shifts():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    layer = GroupNorm(GROUPS, 1, silu=False)
    params = {"params": {"scale": jnp.arange(8.0) / 4, "bias": jnp.arange(8.0) - 3}}
    scale, shift = jax.random.normal(jax.random.key(1), (2, 2, 8))
    plain = layer.apply(params, x)
    want = plain * (1 + scale)[:, None, None] + shift[:, None, None]
    np.testing.assert_allclose(layer.apply(params, x, scale, shift), want, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "groups", "smallest", "count"),
    [(128, 32, 4, 32), (32, 32, 1, 32), (32, 32, 4, 8), (48, 32, 4, 12), (144, 32, 4, 24), (7, 32, 4, 1)],
)
def test_groups_divide_the_channels(channels, groups, smallest, count):
    assert group_count(channels, groups, smallest) == count


def test_a_convolution_of_size_one_is_a_product_at_every_pixel():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    layer = Conv(6, size=1)
    params = nn.meta.unbox(jax.jit(layer.init)(jax.random.key(1), x))
    kernel = params["params"]["kernel"]
    want = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(layer.apply(params, x), want, atol=1e-5)


def test_a_strided_convolution_pads_both_sides():
    """Published U-Nets pad (1, 1), "SAME" pads (0, 1): the first output is centred on the first pixel."""
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    centre = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    out = Conv(1, stride=2).apply({"params": {"kernel": centre, "bias": jnp.zeros(1)}}, x)
    np.testing.assert_array_equal(out, x[:, ::2, ::2])


def test_initial_kernels_keep_the_papers_variance():
    x = jnp.zeros((1, 4, 4, 64))
    kernel = nn.meta.unbox(jax.jit(Conv(128).init)(jax.random.key(0), x))["params"]["kernel"]
    variance = 2 / (9 * (64 + 128))
    np.testing.assert_allclose(jnp.var(kernel), variance, rtol=0.02)
    assert jnp.max(jnp.abs(kernel)) <= np.sqrt(3 * variance) * (1 + 1e-6)


def test_unknown_dtype():
    with pytest.raises(UserError, match=r"dtype='bf16'.*bfloat16"):
        check_dtype("bf16")
