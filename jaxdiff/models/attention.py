"""Dot-product attention. Which kernel runs is decided in one function, `kernel_for`."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxdiff.typing import Array, Bool, Float


def attend(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch tokens heads head_dim"],
    value: Float[Array, "batch tokens heads head_dim"],
    mask: Bool[Array, "batch tokens"] | None = None,
) -> Float[Array, "batch length heads head_dim"]:
    """``softmax(query key^T / sqrt(head_dim)) value`` (Vaswani et al. 2017, eq. 1), the softmax in float32.

    Tokens whose `mask` is False are not there; where no token is, the output is 0.
    """
    kernel = kernel_for(jax.default_backend(), query.dtype, query.shape[-1])
    where = None if mask is None else mask[:, None, None, :]
    out = jax.nn.dot_product_attention(query, key, value, mask=where, implementation=kernel)
    if mask is None:
        return out
    return jnp.where(jnp.any(mask, axis=1)[:, None, None, None], out, 0)


def kernel_for(platform: str, dtype: jnp.dtype, head_dim: int) -> Literal["cudnn", "xla"]:
    """The attention kernel for a platform: cuDNN's where it can, else XLA's."""
    half = dtype in (jnp.bfloat16, jnp.float16)
    return "cudnn" if platform == "gpu" and half and head_dim % 8 == 0 and head_dim <= 128 else "xla"
