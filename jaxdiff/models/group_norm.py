"""Group normalisation as one operation with a short derivative, in forward and reverse mode."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.typing import Array, Float


def group_count(channels: int, groups: int, min_group_size: int) -> int:
    """The largest number of equal groups, at most `groups`, with at least `min_group_size` channels each."""
    limit = max(1, min(groups, channels // min_group_size))
    return next(count for count in range(limit, 0, -1) if channels % count == 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def group_norm(
    x: Float[Array, "batch pixels channels"],
    gamma: Float[Array, "batch channels"],
    beta: Float[Array, "batch channels"],
    groups: int,
    eps: float,
    silu: bool,
) -> Float[Array, "batch pixels channels"]:
    """``silu(gamma (x - mean) / std + beta)``, with statistics over the pixels and channels of a group.

    Statistics are float32 at least and are taken in two passes: E[x^2] - E[x]^2 would lose all digits where the mean is
    large. Sums run over pixels first, where memory is contiguous; channels are folded into groups by a product with a
    constant matrix, which XLA does not repeat for every pixel.
    """
    return _forward(x, gamma, beta, groups, eps, silu)[0]


@group_norm.defjvp
def _group_norm_jvp(groups: int, eps: float, silu: bool, primals: tuple, tangents: tuple) -> tuple:
    """Values and their derivative, whose transpose is the backward pass.

    The checkpoint makes the backward pass keep `x` and its statistics, and compute all else of the size of `x` again.
    """
    y, residuals = _forward(*primals, groups, eps, silu)
    tangent = jax.checkpoint(functools.partial(_tangent, groups, silu), prevent_cse=False)
    return y, tangent(residuals, tangents)


def _forward(x: Array, gamma: Array, beta: Array, groups: int, eps: float, silu: bool) -> tuple[Array, Any]:
    wide = x.astype(statistics_dtype(x))
    fold = functools.partial(_group_mean, groups=groups)
    mean = fold(jnp.mean(wide, axis=1))
    centred = wide - mean[:, None]
    rstd = jax.lax.rsqrt(fold(jnp.mean(jnp.square(centred), axis=1)) + eps)
    z = centred * (rstd * gamma)[:, None] + beta[:, None]
    y = jax.nn.silu(z) if silu else z
    return y.astype(x.dtype), (x, mean, rstd, gamma, beta)


def _tangent(groups: int, silu: bool, residuals: tuple, tangents: tuple) -> Array:
    """``dy = silu'(z) (gamma (du - E[du] - u E[u du]) + u dgamma + dbeta)``, ``u = (x - mean) rstd, du = rstd dx``.

    Terms and factors are ordered for the backward pass: its transpose adds and multiplies from left to right.
    """
    x, mean, rstd, gamma, beta = residuals
    dx, dgamma, dbeta = tangents
    dtype, pixels = statistics_dtype(x), x.shape[1]
    fold = functools.partial(_group_mean, groups=groups)
    centred = x.astype(dtype) - mean[:, None]
    du = dx.astype(dtype) * rstd[:, None]
    constant = jnp.sum(du, axis=1)
    slope = jnp.sum(centred * du, axis=1) * rstd
    dbeta = dbeta.astype(dtype) - gamma * fold(constant / pixels)
    dgamma = dgamma.astype(dtype) - gamma * fold(slope / pixels)
    spread = functools.partial(jax.lax.broadcast_in_dim, shape=x.shape, broadcast_dimensions=(0, 2))
    dz = du * gamma[:, None] + centred * spread(rstd * dgamma) + spread(dbeta)
    if silu:
        z = centred * (rstd * gamma)[:, None] + beta[:, None]
        sigmoid = jax.nn.sigmoid(z)
        dz = dz * (1 + z * (1 - sigmoid)) * sigmoid
    return dz.astype(x.dtype)


def _group_mean(sums: Float[Array, "batch channels"], groups: int) -> Float[Array, "batch channels"]:
    """The mean over each group's channels, repeated for each of its channels."""
    channels = sums.shape[-1]
    member = jnp.arange(channels)[:, None] // (channels // groups) == jnp.arange(groups)[None]
    member = member.astype(sums.dtype)
    means = jnp.matmul(sums, member, precision=jax.lax.Precision.HIGHEST) * (groups / channels)
    return jnp.matmul(means, member.T, precision=jax.lax.Precision.HIGHEST)


def statistics_dtype(x: Float[Array, "..."]) -> jnp.dtype:
    """The dtype of statistics over `x`: float32 at least."""
    return jnp.promote_types(x.dtype, jnp.float32)
