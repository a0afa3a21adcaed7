"""Group normalisation as one operation with a short derivative, in forward and reverse mode."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdiff.models.forward_mode import with_forward_mode
from jaxdiff.typing import Array, Float


def group_count(channels: int, groups: int, min_group_size: int) -> int:
    """The largest number of equal groups, at most `groups`, with at least `min_group_size` channels each."""
    limit = max(1, min(groups, channels // min_group_size))
    return next(count for count in range(limit, 0, -1) if channels % count == 0)


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
    constant matrix, which XLA does not repeat for every pixel. The backward pass keeps `x` and its statistics only.
    """
    return _with_options(groups, eps, silu)((x, gamma, beta), ())


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _group_norm(x: Array, gamma: Array, beta: Array, groups: int, eps: float, silu: bool) -> Array:
    return _forward(x, gamma, beta, groups, eps, silu)[0]


def _forward(x: Array, gamma: Array, beta: Array, groups: int, eps: float, silu: bool) -> tuple[Array, tuple]:
    wide = x.astype(statistics_dtype(x))
    fold = functools.partial(_group_mean, groups=groups)
    mean = fold(jnp.mean(wide, axis=1))
    centred = wide - mean[:, None]
    rstd = jax.lax.rsqrt(fold(jnp.mean(jnp.square(centred), axis=1)) + eps)
    z = centred * (rstd * gamma)[:, None] + beta[:, None]
    y = jax.nn.silu(z) if silu else z
    return y.astype(x.dtype), (x, mean, rstd, gamma, beta)


def _backward(groups: int, eps: float, silu: bool, residuals: tuple, dy: Array) -> tuple[Array, Array, Array]:
    """With ``u = (x - mean) rstd``: ``dx = rstd (gamma dz - E[gamma dz] - u E[gamma dz u])``."""
    x, mean, rstd, gamma, beta = residuals
    dtype, pixels = statistics_dtype(x), x.shape[1]
    fold = functools.partial(_group_mean, groups=groups)
    centred = x.astype(dtype) - mean[:, None]
    dz = dy.astype(dtype)
    if silu:
        z = centred * (rstd * gamma)[:, None] + beta[:, None]
        sigmoid = jax.nn.sigmoid(z)
        dz = dz * sigmoid * (1 + z * (1 - sigmoid))
    dbeta = jnp.sum(dz, axis=1)
    dgamma = jnp.sum(dz * centred, axis=1) * rstd
    constant = fold(gamma * dbeta) / pixels
    slope = fold(gamma * dgamma) / pixels
    dx = dz * gamma[:, None] - centred * (rstd * slope)[:, None] - constant[:, None]
    dx = dx * rstd[:, None]
    return dx.astype(x.dtype), dgamma.astype(gamma.dtype), dbeta.astype(beta.dtype)


_group_norm.defvjp(_forward, _backward)


@functools.cache
def _with_options(groups: int, eps: float, silu: bool) -> Callable:
    """Group norm of (x, gamma, beta), differentiable in both modes."""
    return with_forward_mode(
        lambda arrays, _: _group_norm(*arrays, groups, eps, silu),
        lambda arrays, _: _forward(*arrays, groups, eps, silu)[0],
    )


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
