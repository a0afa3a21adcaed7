"""Dot-product attention: which kernel runs where, and how channels are split into heads."""

import functools
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdiff.errors import expect, positive
from jaxdiff.models.forward_mode import with_forward_mode
from jaxdiff.typing import Array, Bool, Float

SCORES = 2**22
"""Largest number of attention scores that `attend_in_blocks` holds at a time."""


def attend(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch tokens heads head_dim"],
    value: Float[Array, "batch tokens heads head_dim"],
    mask: Bool[Array, "batch tokens"] | None = None,
) -> Float[Array, "batch length heads head_dim"]:
    """``softmax(query key^T / sqrt(head_dim)) value`` (Vaswani et al. 2017, eq. 1), the softmax in float32.

    Tokens whose `mask` is False are ignored; the output of an example without any token is 0. A program for CUDA uses
    cuDNN's fused kernel if it takes the dtype and head size. The platform is that of the compiled program, not that of
    the process. Gradients run the kernel's own backward pass; forward mode runs XLA's operations. A program for a CPU
    computes large attention in blocks of queries (`attend_in_blocks`).
    """
    if not (fused_kernel_takes(query.dtype, query.shape[-1]) and cudnn_available()):
        return _attend_unfused(query, key, value, mask)
    return _attend_by_platform((query, key, value), mask)


def fused_kernel_takes(dtype: jnp.dtype, head_dim: int) -> bool:
    """Whether cuDNN's fused attention supports a dtype and a head size on every GPU that has the kernel."""
    return dtype in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= 128


@functools.cache
def cudnn_available() -> bool:
    """Whether this process can build programs that call cuDNN; it needs JAX's CUDA plugin, but no GPU."""
    array = jax.ShapeDtypeStruct((1, 2, 1, 8), jnp.bfloat16)
    try:
        jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), *(array,) * 3)
    except RuntimeError:  # "cuDNN is not detected."
        return False
    return True


def _attend_unfused(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    if _blocks(query, key) == 1:
        return _attend_xla(query, key, value, mask)
    return jax.lax.platform_dependent(query, key, value, mask, cpu=attend_in_blocks, default=_attend_xla)


def _blocks(query: Array, key: Array) -> int:
    """The number of blocks of queries."""
    queries = max(SCORES // (key.shape[1] * key.shape[2]), 1)
    return -(-query.shape[1] // queries)


def attend_in_blocks(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch tokens heads head_dim"],
    value: Float[Array, "batch tokens heads head_dim"],
    mask: Bool[Array, "batch tokens"] | None,
) -> Float[Array, "batch length heads head_dim"]:
    """`attend`, one block of an example's queries at a time, whose scores stay in the cache of a CPU.

    With 4096 queries and tokens it takes a third of the time of all scores at once, and no memory for them. The
    backward pass computes the scores of each block again.
    """
    out = jax.lax.map(lambda example: _example_in_blocks(*example), (query, key, value, mask))
    return _zero_without_tokens(out, mask)


def _example_in_blocks(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    length, count = query.shape[0], _blocks(query[None], key[None])
    query, key, value = (
        jnp.swapaxes(x, 0, 1) for x in (query, key, value)
    )  # heads first: plain products of matrices
    query = jnp.pad(query, ((0, 0), (0, -length % count), (0, 0)))
    blocks = jnp.swapaxes(query.reshape(query.shape[0], count, -1, query.shape[2]), 0, 1)
    scale = query.shape[-1] ** -0.5

    @jax.checkpoint
    def attended(query: Array) -> Array:
        scores = scale * jnp.einsum("hqd,hkd->hqk", query, key, preferred_element_type=jnp.float32)
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
        weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
        total = jnp.sum(
            weights, axis=-1, keepdims=True
        )  # divided by at the end: there are fewer channels than tokens
        out = jnp.einsum(
            "hqk,hkd->hqd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
        )
        return jnp.swapaxes((out / total).astype(value.dtype), 0, 1)

    return jax.lax.map(attended, blocks).reshape(-1, *key.shape[::2])[:length]


def _attend_xla(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    where = None if mask is None else mask[:, None, None, :]
    out = jax.nn.dot_product_attention(query, key, value, mask=where, implementation="xla")
    return _zero_without_tokens(out, mask)


def attend_with_counts(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch tokens heads head_dim"],
    value: Float[Array, "batch tokens heads head_dim"],
    mask: Bool[Array, "batch tokens"] | None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "batch length heads head_dim"]:
    """`attend` for a kernel that takes the number of tokens of each example instead of a mask, and even lengths only.

    The tokens that the mask keeps are moved to the front: attention does not depend on the order of tokens.
    """
    batch, length, tokens = query.shape[0], query.shape[1], key.shape[1]
    counts = None
    if mask is not None:
        order = jnp.argsort(~mask, axis=1, stable=True)[:, :, None, None]
        key, value = (jnp.take_along_axis(x, order, axis=1) for x in (key, value))
        counts = jnp.maximum(jnp.sum(mask, axis=1), 1).astype(
            jnp.int32
        )  # a softmax over nothing would be NaN
    elif tokens % 2:
        counts = jnp.full((batch,), tokens, jnp.int32)
    query, key, value = map(_even, (query, key, value))
    out = jax.nn.dot_product_attention(
        query, key, value, key_value_seq_lengths=counts, implementation=implementation
    )
    return _zero_without_tokens(out[:, :length], mask)


def _even(x: Array) -> Array:
    """A sequence padded with a zero to an even length."""
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))


def _zero_without_tokens(out: Array, mask: Array | None) -> Array:
    return out if mask is None else jnp.where(jnp.any(mask, axis=1)[:, None, None, None], out, 0)


_attend_by_platform = with_forward_mode(
    lambda arrays, mask: jax.lax.platform_dependent(
        *arrays, mask, cuda=attend_with_counts, default=_attend_xla
    ),
    lambda arrays, mask: _attend_xla(*arrays, mask),
)


@runtime_checkable
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
