"""Dot-product attention: which kernel runs where, and how channels are split into heads."""

from typing import Literal, Protocol

import jax
import jax.numpy as jnp

from jaxdiff.errors import expect, positive
from jaxdiff.typing import Array, Bool, Float


def attend(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch tokens heads head_dim"],
    value: Float[Array, "batch tokens heads head_dim"],
    mask: Bool[Array, "batch tokens"] | None = None,
) -> Float[Array, "batch length heads head_dim"]:
    """``softmax(query key^T / sqrt(head_dim)) value`` (Vaswani et al. 2017, eq. 1), the softmax in float32.

    Tokens whose `mask` is False are ignored; the output of an example without any token is 0.
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


class Heads(Protocol):
    """A part that fixes either the number of its attention heads or their size."""

    @property
    def heads(self) -> int | None: ...

    @property
    def head_dim(self) -> int | None: ...


def head_count(width: int, heads: int | None, head_dim: int | None) -> int:
    """The number of attention heads over `width` channels."""
    return heads or width // (head_dim or width)


def check_heads(part: Heads) -> None:
    """Raise a `UserError` unless exactly one of `heads` and `head_dim` is given."""
    positive(part, "heads", "head_dim")
    expect(
        (part.head_dim is None) != (part.heads is None),
        "heads",
        part.heads,
        f"either heads or head_dim, with head_dim={part.head_dim}",
        "give one of them, and None for the other",
    )


def check_width(part: Heads, width: int, field: str) -> None:
    """Raise a `UserError` about `field` unless `width` channels split into whole heads."""
    expect(
        width % (part.heads or part.head_dim or 1) == 0,
        field,
        width,
        f"channels that split into attention heads (head_dim={part.head_dim}, heads={part.heads})",
        "use a multiple of head_dim or heads, or change those",
    )
