"""Magnitude-preserving layers: unit variance in, unit variance out (EDM2).

The source is Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models"; equation numbers
are the paper's. There are no biases. Weights begin on the unit sphere and are normalised again in every forward pass:
their length has no effect, and their gradient is at right angles to them. An optimizer that keeps them on the sphere,
``AdamW(unit_weights="weight")``, is the paper's forced weight normalisation. Every parameter called "weight" here has
its outputs on the last axis.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.errors import positive
from jaxdiff.typing import Array, Features, Float, Images, Key

EPS = 1e-4
SILU_SIZE = 0.596
"""Root mean square of ``silu(x)`` for x ~ N(0, 1), rounded as in the paper (equation 81)."""


def normalize(
    x: Float[Array, "*shape"], axis: int | tuple[int, ...] = -1, eps: float = EPS
) -> Float[Array, "*shape"]:
    """``x / (eps + rms(x))``, the root mean square over `axis`, in float32 at least."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.mean(jnp.square(wide), axis=axis, keepdims=True)
    # The root has no slope at 0; there the denominator is constant instead of NaN.
    root = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return (wide / (eps + root)).astype(x.dtype)


def mp_silu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``silu(x) / 0.596`` (equation 81)."""
    return jax.nn.silu(x) / SILU_SIZE


def mp_sum(a: Float[Array, "*shape"], b: Float[Array, "*shape"], balance: float) -> Float[Array, "*shape"]:
    """``(1 - balance) a + balance b``, divided by its root mean square for independent a and b (equation 88)."""
    size = math.hypot(1 - balance, balance)
    return (1 - balance) / size * a + balance / size * b


def mp_cat(
    a: Float[Array, "*shape a"], b: Float[Array, "*shape b"], balance: float
) -> Float[Array, "*shape joined"]:
    """Concatenated channels of a and b, scaled so that `balance` does not depend on their numbers (equation 103).

    a contributes ``(1 - balance)^2`` and b ``balance^2`` to the variance of the next layer, up to a common factor. The
    mean square of the result is 1.
    """
    first, second = a.shape[-1], b.shape[-1]
    scale = math.sqrt(first + second) / math.hypot(1 - balance, balance)
    parts = (1 - balance) / math.sqrt(first) * a, balance / math.sqrt(second) * b
    return scale * jnp.concatenate(parts, axis=-1)


class MagnitudeDense(nn.Module):
    """``gain x W / sqrt(fan in)`` over the last axis, the columns of W normalised (equation 47 with 66)."""

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch channels"], gain: Float[Array, ""] | float = 1.0
    ) -> Float[Array, "*batch features"]:
        weight = _weight(self, (x.shape[-1], self.features), ("channels_in", "channels_out"))
        return x.astype(self.dtype) @ _scaled(weight, gain).astype(self.dtype)


class MagnitudeConv(nn.Module):
    """`MagnitudeDense` as a convolution with zero padding of ``size // 2`` on each side; a matrix product if size=1."""

    features: int
    size: int = 3
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images, gain: Float[Array, ""] | float = 1.0) -> Features:
        names = (None, None, "channels_in", "channels_out")
        weight = _weight(self, (self.size, self.size, x.shape[-1], self.features), names)
        weight, x = _scaled(weight, gain).astype(self.dtype), x.astype(self.dtype)
        if self.size == 1:
            return x @ weight[0, 0]
        return jax.lax.conv_general_dilated(
            x,
            weight,
            window_strides=(1, 1),
            padding=[(self.size // 2, self.size // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class MagnitudeFourier(nn.Module):
    """``sqrt(2) cos(f c + phase)`` of a number c (equation 75): f ~ N(0, (2 pi bandwidth)^2), phases uniform.

    Both are drawn once and are not trained.
    """

    features: int
    bandwidth: float = 1.0

    @nn.compact
    def __call__(self, noise_label: Float[Array, "batch"]) -> Float[Array, "batch features"]:
        turn, shape = 2 * math.pi, (self.features,)
        frequencies = self.param("frequencies", _fixed(nn.initializers.normal(turn * self.bandwidth)), shape)
        phases = self.param("phases", _fixed(nn.initializers.uniform(turn)), shape)
        angles = noise_label[:, None] * frequencies[None] + phases[None]
        return math.sqrt(2) * jnp.cos(jax.lax.stop_gradient(angles))


class MagnitudeUncertainty(nn.Module):
    """The log-variance ``u(sigma)`` of the error: Fourier features and one linear layer, as in the paper's network.

    Like `uncertainty.Uncertainty`, with a magnitude-preserving layer, whose normalised weights cannot begin at 0.

    Attributes:
      width: number of Fourier features.
    """

    width: int = 128

    def __post_init__(self):
        positive(self, "width")
        super().__post_init__()

    @nn.compact
    def __call__(self, noise_label: Float[Array, "batch"]) -> Float[Array, "batch"]:
        features = MagnitudeFourier(self.width, name="fourier")(noise_label)
        return MagnitudeDense(1, name="linear")(features)[:, 0]


def gain(module: nn.Module, name: str) -> Float[Array, ""]:
    """A learned scalar of `module`, 0 at first."""
    value: Any = module.param(name, nn.with_logical_partitioning(nn.initializers.zeros, ()), ())
    return value


def unit_init(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Columns of normal direction and root mean square 1 over all axes but the last."""
    return normalize(jax.random.normal(key, shape, dtype), tuple(range(len(shape) - 1)), eps=0.0)


def _weight(module: nn.Module, shape: tuple[int, ...], names: tuple[str | None, ...]) -> Array:
    weight: Any = module.param("weight", nn.with_logical_partitioning(unit_init, names), shape)
    return weight


def _fixed(init):
    return nn.with_logical_partitioning(init, (None,))


def _scaled(weight: Float[Array, "*shape"], gain: Float[Array, ""] | float) -> Float[Array, "*shape"]:
    """The columns of a weight, normalised to the length `gain`; float32."""
    axes = tuple(range(weight.ndim - 1))
    fan_in = math.prod(weight.shape[:-1])
    return normalize(weight, axes) * (gain / math.sqrt(fan_in))
