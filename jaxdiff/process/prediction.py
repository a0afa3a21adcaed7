"""Parameterizations: targets of networks, and their conversion to a `Prediction` of x_0 and noise.

A network's target is a row of two numbers, ``F = a x_0 + b noise``. With ``x_t = alpha x_0 + sigma noise``
this is a 2 x 2 linear system of determinant ``D = a sigma - b alpha``, so every conversion is one formula:

    x_0 = (sigma F - b x_t) / D          noise = (a x_t - alpha F) / D

Everything after the denoiser sees the pair and does not depend on the parameterization.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdiff.errors import positive
from jaxdiff.process.gaussian import Process, expand
from jaxdiff.process.labels import LogSigma, NoiseLabel, Time
from jaxdiff.typing import Array, Float, Output, Times
from jaxdiff.typing import Data as DataArray


class Prediction(NamedTuple):
    """The predicted clean data and noise, which together make up ``x_t``; and a learned variance, if there is one.

    Attributes:
      x_0, noise: the pair.
      variance_fraction: where the log-variance of a reverse step lies between its two bounds. 0 is the variance of the
        posterior ``q(x_s | x_t, x_0)``, 1 that of the forward step from s to t (Nichol & Dhariwal 2021, equation 15).
        A fraction, since the bounds depend on the step that a sampler takes. None without a learned variance.
    """

    x_0: DataArray
    noise: DataArray
    variance_fraction: DataArray | None = None


@runtime_checkable
class Parameterization(Protocol):
    """The row (a, b) of a network's target, and the preconditioning of its inputs ``x_t`` and t."""

    @property
    def label(self) -> NoiseLabel:
        """The noise label, the network's input for the time."""
        ...

    def row(
        self, process: Process, t: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]: ...

    def network_input(self, process: Process, x_t: DataArray, t: Times) -> tuple[DataArray, Times]:
        """The network's inputs: scaled noisy data, and the noise label."""
        return x_t, self.label(process, t)

    def split(self, output: Output) -> tuple[DataArray, DataArray | None]:
        """A network's output as the target and, if the network predicts it, `Prediction.variance_fraction`."""
        return output, None


@dataclasses.dataclass(frozen=True)
class Noise(Parameterization):
    """Noise prediction, "epsilon" (Ho et al. 2020). It does not determine x_0 where alpha = 0."""

    label: NoiseLabel = Time()

    def row(
        self, process: Process, t: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        return jnp.zeros_like(t), jnp.ones_like(t)


@dataclasses.dataclass(frozen=True)
class Data(Parameterization):
    """Data prediction, "x_0" or "sample". It does not determine the noise where sigma = 0."""

    label: NoiseLabel = Time()

    def row(
        self, process: Process, t: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        return jnp.ones_like(t), jnp.zeros_like(t)


@dataclasses.dataclass(frozen=True)
class V(Parameterization):
    """v-prediction: ``v = alpha noise - sigma x_0`` (Salimans & Ho 2022, "Progressive Distillation", appendix D)."""

    label: NoiseLabel = Time()

    def row(
        self, process: Process, t: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        alpha, sigma = process.signal(t)
        return -sigma, alpha


@dataclasses.dataclass(frozen=True)
class Velocity(Parameterization):
    """Velocity prediction: ``d x_t / dt`` from data to noise (flow matching); ``noise - x_0`` for a rectified flow."""

    label: NoiseLabel = Time()

    def row(
        self, process: Process, t: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        _, (alpha_rate, sigma_rate) = jax.jvp(process.signal, (t,), (jnp.ones_like(t),))
        return alpha_rate, sigma_rate


@dataclasses.dataclass(frozen=True)
class Score(Parameterization):
    """Score prediction: ``grad log p(x_t) = -noise / sigma`` (Song et al. 2021). Infinite where sigma = 0; 0 there.

    Attributes:
      scaled: whether the network predicts sigma times the score, which is finite everywhere. NCSN++ divides its output
        by sigma (Song et al. 2021, appendix H; the VE column of Karras et al. 2022, table 1).
    """

    label: NoiseLabel = Time()
    scaled: bool = False

    def row(
        self, process: Process, t: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        zero = jnp.zeros_like(t)
        return zero, zero - 1 if self.scaled else _ratio(-1.0, process.signal(t).sigma)


@dataclasses.dataclass(frozen=True)
class Edm(Parameterization):
    """EDM preconditioning (Karras et al. 2022, table 1): input and target of unit variance at every noise level.

    ``x_0 = c_skip x + c_out F(c_in x)`` is stated there for alpha = 1. Any process is brought to it by
    dividing by alpha; in the formulas below no alpha is left in a denominator, so both ends of time are regular.

    Attributes:
      sigma_data: standard deviation of the data.
      label: noise label.
    """

    sigma_data: float = 0.5
    label: NoiseLabel = LogSigma()

    def __post_init__(self):
        positive(self, "sigma_data")

    def row(
        self, process: Process, t: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        alpha, sigma = process.signal(t)
        scale = self._scale(process, t)
        return sigma / (self.sigma_data * scale), -self.sigma_data * alpha / scale

    def network_input(self, process: Process, x_t: DataArray, t: Times) -> tuple[DataArray, Times]:
        """``c_in x_t / alpha``, and ``c_noise = log(sigma / alpha) / 4`` unless another label is given."""
        return x_t / expand(self._scale(process, t), x_t), self.label(process, t)

    def _scale(self, process: Process, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The standard deviation of ``x_t``."""
        alpha, sigma = process.signal(t)
        return jnp.sqrt(jnp.square(sigma) + jnp.square(self.sigma_data * alpha))


@dataclasses.dataclass(frozen=True)
class LearnedVariance(Parameterization):
    """Learned variance: a network with twice the channels, the target of `mean` and v of the variance.

    `Prediction.variance_fraction` is ``(v + 1) / 2``, unbounded (Nichol & Dhariwal 2021, equation 15; ADM's networks).

    Attributes:
      mean: the parameterization of the first half of the channels.
    """

    mean: Parameterization = Noise()

    @property
    def label(self) -> NoiseLabel:
        return self.mean.label

    def row(
        self, process: Process, t: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        return self.mean.row(process, t)

    def network_input(self, process: Process, x_t: DataArray, t: Times) -> tuple[DataArray, Times]:
        return self.mean.network_input(process, x_t, t)

    def split(self, output: Output) -> tuple[DataArray, DataArray | None]:
        value, v = jnp.split(output, 2, axis=-1)
        return value, (v + 1) / 2


def with_label(parameterization: Parameterization, label: NoiseLabel) -> Parameterization:
    """The same parameterization with another noise label."""
    if isinstance(parameterization, LearnedVariance):
        return LearnedVariance(with_label(parameterization.mean, label))
    labelled: Any = parameterization
    return dataclasses.replace(labelled, label=label)


def target(
    parameterization: Parameterization,
    process: Process,
    t: Float[Array, "..."],
    x_0: DataArray,
    noise: DataArray,
) -> DataArray:
    """``F = a x_0 + b noise``: the training target of the network for this pair at this time."""
    a, b = parameterization.row(process, t)
    return expand(a, x_0) * x_0 + expand(b, x_0) * noise


def decode(
    parameterization: Parameterization,
    process: Process,
    t: Float[Array, "..."],
    x_t: DataArray,
    output: Output,
) -> Prediction:
    """The prediction that a network's output represents; the inverse of `target`. Computed in float32 at least.

    Without noise (sigma = 0) x_0 is read off ``x_t``, and without data (alpha = 0) the noise is. What neither
    ``x_t`` nor the output determines there is 0, its mean; nothing is ever NaN.
    """
    x_t, output = (value.astype(jnp.promote_types(value.dtype, jnp.float32)) for value in (x_t, output))
    output, variance_fraction = parameterization.split(output)
    alpha, sigma = process.signal(t)
    a, b = parameterization.row(process, t)
    determinant = _determinant(parameterization, process, t)

    def combine(of_x_t, of_output):
        return expand(of_x_t, x_t) * x_t + expand(of_output, x_t) * output

    x_0 = combine(
        jnp.where(sigma == 0, _ratio(1.0, alpha), _ratio(-b, determinant)),
        jnp.where(sigma == 0, 0.0, _ratio(sigma, determinant)),
    )
    noise = combine(
        jnp.where(alpha == 0, _ratio(1.0, sigma), _ratio(a, determinant)),
        jnp.where(alpha == 0, 0.0, _ratio(-alpha, determinant)),
    )
    return Prediction(x_0, noise, variance_fraction)


def error_ratio(
    space: Parameterization, parameterization: Parameterization, process: Process, t: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """The factor by which an error of the network's output is larger in the target of `space`.

    With ``x_t`` fixed, an error e moves ``x_0`` by ``sigma e / D`` and the noise by ``-alpha e / D``, hence
    the target ``a' x_0 + b' noise`` by ``e D' / D``. It is 0 where the output determines nothing (D = 0).
    """
    return _ratio(_determinant(space, process, t), _determinant(parameterization, process, t))


def _determinant(
    parameterization: Parameterization, process: Process, t: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    alpha, sigma = process.signal(t)
    a, b = parameterization.row(process, t)
    return a * sigma - b * alpha


def _ratio(numerator: Float[Array, "..."] | float, denominator: Float[Array, "..."]) -> Float[Array, "..."]:
    """A quotient that is 0, with gradient 0, where it is undefined."""
    fine = jnp.isfinite(denominator) & (denominator != 0)
    return jnp.where(fine, numerator, 0.0) / jnp.where(fine, denominator, 1.0)
