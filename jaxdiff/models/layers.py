"""Layers with parameters: dense, convolution, projections to attention heads, norms.

Parameters are float32, each boxed with the names of its axes ("channels_in", "channels_out", "heads",
"embed"), which `distributed.partitioning` maps to the mesh. Only layers name axes. A layer computes in its `dtype`,
a string. Epsilons, paddings and initialisers are written out, because frameworks differ in their defaults.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.errors import expect
from jaxdiff.models.group_norm import group_count, group_norm, statistics_dtype
from jaxdiff.typing import Array, Features, Float, Images, Int

DTYPES = ("float32", "bfloat16", "float16", "float64")
HIGHEST = jax.lax.Precision.HIGHEST
Axes = int | tuple[int, ...]


def check_dtype(dtype: str) -> None:
    """Raise a `UserError` unless layers can compute in `dtype`."""
    expect(dtype in DTYPES, "dtype", dtype, "a floating-point type", f"use {' or '.join(DTYPES)}")


def kernel_init(
    zero: bool,
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: tuple[int, ...] = (),
) -> Callable:
    """Uniform with variance 2 / (fan in + fan out), or zero (Ho et al. 2020, after Glorot & Bengio 2010)."""
    if zero:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(
        1.0, "fan_avg", "uniform", in_axis=in_axis, out_axis=out_axis, batch_axis=batch_axis
    )


def embedding_init(std: float = 1.0) -> Callable:
    """N(0, std^2) for rows of a table [rows, width]."""
    return nn.with_logical_partitioning(nn.initializers.normal(std), (None, "embed"))


def look_up(
    table: Float[Array, "rows channels"], ids: Int[Array, "batch length"]
) -> Float[Array, "batch length channels"]:
    """Rows of a table by their ids, in float32 at least. An id out of range becomes NaN, never another row."""
    rows = jnp.where(ids < 0, table.shape[0], ids)  # -1 would be the last row
    found = jnp.take(table, rows, axis=0, mode="fill", fill_value=jnp.nan)
    return found.astype(statistics_dtype(found))


class Dense(nn.Module):
    """``x W + b`` over the last axis; without b if not `bias`."""

    features: int
    zero: bool = False
    dtype: str = "float32"
    bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channels"]) -> Float[Array, "*batch features"]:
        init = nn.with_logical_partitioning(kernel_init(self.zero), ("channels_in", "channels_out"))
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        x = x.astype(self.dtype) @ kernel.astype(self.dtype)
        return x + _bias(self, x.ndim) if self.bias else x


class Conv(nn.Module):
    """Convolution; a matrix product if its size is 1.

    Attributes:
      size: side of the kernel, or its height and width.
      padding: zeros before and after each row and column; ``size // 2`` on both sides if None.
      bias: whether a bias is added.
    """

    features: int
    size: int | tuple[int, int] = 3
    stride: int = 1
    padding: tuple[int, int] | None = None
    zero: bool = False
    dtype: str = "float32"
    bias: bool = True

    @nn.compact
    def __call__(self, x: Images) -> Features:
        names = (None, None, "channels_in", "channels_out")
        init = nn.with_logical_partitioning(kernel_init(self.zero), names)
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        kernel = self.param("kernel", init, (*size, x.shape[-1], self.features))
        kernel, x = kernel.astype(self.dtype), x.astype(self.dtype)
        if size == (1, 1) and self.stride == 1:
            x = x @ kernel[0, 0]
        else:
            # Padding is explicit: "SAME" pads a stride of 2 on one side only, unlike most published U-Nets.
            padding = [self.padding or (side // 2, side // 2) for side in size]
            x = jax.lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(self.stride,) * 2,
                padding=padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        return x + _bias(self, x.ndim) if self.bias else x


class ToHeads(nn.Module):
    """Projection of a sequence to attention heads, `count` times at once: queries, keys, values."""

    count: int
    heads: int
    head_dim: int
    dtype: str = "float32"
    bias: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length channels"]
    ) -> list[Float[Array, "batch length heads head_dim"]]:
        shape = (self.count, self.heads, self.head_dim)
        names = (None, "heads", None)
        init = nn.with_logical_partitioning(kernel_init(False, 0, (2, 3), (1,)), ("channels_in", *names))
        kernel = self.param("kernel", init, (x.shape[-1], *shape))
        x = x.astype(self.dtype) @ kernel.astype(self.dtype).reshape(x.shape[-1], -1)
        x = x.reshape(*x.shape[:-1], *shape)
        if self.bias:
            bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, names), shape)
            x = x + bias.astype(self.dtype)[None, None]
        return [x[..., i, :, :] for i in range(self.count)]


class FromHeads(nn.Module):
    """Projection of attention heads to channels; zero at first by default: attention starts as the identity."""

    features: int
    dtype: str = "float32"
    zero: bool = True
    bias: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length heads head_dim"]
    ) -> Float[Array, "batch length channels"]:
        init = kernel_init(self.zero, (0, 1), 2)
        init = nn.with_logical_partitioning(init, ("heads", None, "channels_out"))
        kernel = self.param("kernel", init, (*x.shape[-2:], self.features)).astype(self.dtype)
        x = x.astype(self.dtype).reshape(*x.shape[:-2], -1) @ kernel.reshape(-1, self.features)
        return x + _bias(self, x.ndim) if self.bias else x


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018), then ``x (1 + scale) + shift`` if given, then SiLU if `silu`.

    Attributes:
      groups: upper bound on the number of groups, see `group_count`.
      min_group_size: lower bound on the number of channels in a group.
      silu: whether SiLU follows.
      eps: added to the variance.
    """

    groups: int = 32
    min_group_size: int = 4
    silu: bool = True
    eps: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *grid channels"],
        scale: Float[Array, "batch channels"] | None = None,
        shift: Float[Array, "batch channels"] | None = None,
    ) -> Float[Array, "batch *grid channels"]:
        channels = x.shape[-1]
        names = ("channels_out",)
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        gamma = self.param("scale", nn.with_logical_partitioning(ones, names), (channels,))
        beta = self.param("bias", nn.with_logical_partitioning(zeros, names), (channels,))
        gamma, beta = gamma[None], beta[None]
        if scale is not None:
            gain = 1 + scale
            gamma, beta = gamma * gain, beta * gain
        if shift is not None:
            beta = beta + shift
        gamma, beta = (jnp.broadcast_to(value, (x.shape[0], channels)) for value in (gamma, beta))
        groups = group_count(channels, self.groups, self.min_group_size)
        flat = x.reshape(x.shape[0], -1, channels)
        return group_norm(flat, gamma, beta, groups, self.eps, self.silu).reshape(x.shape)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis (Ba et al. 2016), then ``x (1 + scale) + shift`` if given.

    Statistics are float32 at least.
    """

    eps: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length channels"],
        scale: Float[Array, "batch channels"] | None = None,
        shift: Float[Array, "batch channels"] | None = None,
    ) -> Float[Array, "batch length channels"]:
        names, shape = ("channels_out",), x.shape[-1:]
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        gamma = self.param("scale", nn.with_logical_partitioning(ones, names), shape)
        beta = self.param("bias", nn.with_logical_partitioning(zeros, names), shape)
        wide = x.astype(statistics_dtype(x))
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        rstd = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.eps)
        y = gamma[None, None] * (centred * rstd) + beta[None, None]
        if scale is not None:
            y = y * (1 + scale[:, None])
        if shift is not None:
            y = y + shift[:, None]
        return y.astype(x.dtype)


class RmsNorm(nn.Module):
    """Root mean square normalisation over the last axis (Zhang & Sennrich 2019): neither a mean nor a bias.

    Statistics are float32 at least.
    """

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "batch length channels"]) -> Float[Array, "batch length channels"]:
        init = nn.with_logical_partitioning(nn.initializers.ones, ("channels_out",))
        gamma = self.param("scale", init, x.shape[-1:])
        wide = x.astype(statistics_dtype(x))
        rstd = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (gamma[None, None] * (wide * rstd)).astype(x.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation with stored statistics (Ioffe & Szegedy 2015): a network that is not trained any more."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Features) -> Features:
        init = {"scale": nn.initializers.ones, "bias": nn.initializers.zeros}
        init |= {"mean": nn.initializers.zeros, "variance": nn.initializers.ones}
        found: list[Any] = [
            self.param(name, nn.with_logical_partitioning(each, ("channels_out",)), x.shape[-1:])
            for name, each in init.items()
        ]
        scale, bias, mean, variance = found
        gain = scale * jax.lax.rsqrt(variance + self.eps)
        return x * gain[None, None, None] + (bias - mean * gain)[None, None, None]


def scaled(x: Float[Array, "*shape"], scale: float) -> Float[Array, "*shape"]:
    """``scale x``; a scale of 1 costs nothing."""
    return x if scale == 1 else x * jnp.asarray(scale, x.dtype)


def _bias(module: nn.Module, ndim: int) -> Float[Array, "..."]:
    """A bias parameter of `module`, in its dtype, that broadcasts against arrays of `ndim` axes."""
    init = nn.with_logical_partitioning(nn.initializers.zeros, ("channels_out",))
    bias = module.param("bias", init, (module.features,))
    return bias.reshape((1,) * (ndim - 1) + bias.shape).astype(module.dtype)
