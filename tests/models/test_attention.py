"""Attention against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models.attention import attend, kernel_for


def inputs(length=5, tokens=7, dtype="float32"):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, length, 3, 8), (2, tokens, 3, 8), (2, tokens, 3, 8)]
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def formula(query, key, value, mask=None):
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    weights = np.exp(np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1]))
    if mask is not None:
        weights = weights * np.asarray(mask)[:, None, None]
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, value)


def test_attention_is_softmax():
    np.testing.assert_allclose(attend(*inputs()), formula(*inputs()), atol=1e-6)


def test_masked_tokens_are_not_there():
    mask = jnp.array([[1, 1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1]], bool)
    query, key, value = inputs()
    got = attend(query, key, value, mask)
    np.testing.assert_allclose(got, formula(query, key, value, mask), atol=1e-6)
    hidden = ~mask[:, :, None, None]
    np.testing.assert_array_equal(attend(query, key + 9.0 * hidden, value - 9.0 * hidden, mask), got)


def test_nothing_to_attend_to_gives_zero():
    mask = jnp.array([[False] * 7, [True] * 7])
    out = attend(*inputs(), mask)
    assert jnp.all(out[0] == 0)
    np.testing.assert_allclose(out[1], formula(*inputs())[1], atol=1e-6)


def test_bfloat16_softmax_is_float32():
    """The weights of 4096 equal tokens are 2^-12 each; a bfloat16 sum stops growing at 2^8 of them."""
    query, key = jnp.zeros((1, 1, 1, 8), "bfloat16"), jnp.zeros((1, 4096, 1, 8), "bfloat16")
    value = jnp.ones((1, 4096, 1, 8), "bfloat16")
    np.testing.assert_allclose(attend(query, key, value).astype("float32"), 1.0, atol=2**-7)


@pytest.mark.parametrize(
    ("platform", "dtype", "head_dim", "kernel"),
    [("cpu", "bfloat16", 64, "xla"), ("gpu", "bfloat16", 64, "cudnn"), ("gpu", "float32", 64, "xla"),
     ("gpu", "float16", 20, "xla"), ("tpu", "bfloat16", 64, "xla")],
)  # fmt: skip
def test_the_kernel_is_one_that_the_platform_has(platform, dtype, head_dim, kernel):
    assert kernel_for(platform, jnp.dtype(dtype), head_dim) == kernel
