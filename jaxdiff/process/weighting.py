"""Loss weighting: the weight of each noise level, and the target in which its error is measured.

A weighting has a `space`, the target in which squared errors are taken, and a weight for each log-SNR. So a weighting
means the same whatever the network outputs: an error e of the output contributes
``weighting(log_snr) * (error_ratio * e)^2``, with `jaxdiff.process.prediction.error_ratio`.

A weight multiplies the density of the training times and is not divided by it. What Kingma & Gao 2023
("Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation", section 3) call w(log-SNR), the
weight of the noise error per unit of log-SNR, is the weight here (in the space of the noise) times the density of the
log-SNR in training. With `time_sampling.UniformLogSnr` the two are the same up to a constant. With a distribution of
times the density is ``p(t) / |d log-SNR / dt|``, so that the effect of a weighting depends on the schedule.
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdiff.errors import expect, positive
from jaxdiff.process import prediction
from jaxdiff.typing import Array, Float

MAX_LOG_SNR = 80.0  # exp() of more overflows in float32, and infinity times an error of zero is NaN


@runtime_checkable
class Weighting(Protocol):
    """A weight for each log-SNR, of squared errors in the target of `space` (None: the network's own)."""

    @property
    def space(self) -> prediction.Parameterization | None: ...

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]: ...


@dataclasses.dataclass(frozen=True)
class Flat(Weighting):
    """Weight 1 at every noise level: the plain squared error in any target.

    Without a `space` the target is the network's own output (DDPM's "simple" loss, flow matching). ``Flat(space=V())``
    is "SNR + 1" weighting (Salimans & Ho 2022, section 4), ``Flat(space=prediction.Edm())`` is the weighting `Edm`.
    """

    space: prediction.Parameterization | None = None

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.ones_like(log_snr)


class _OfData(Weighting):
    """A weight of the error of x_0."""

    @property
    def space(self) -> prediction.Parameterization | None:
        return prediction.Data()


class _OfNoise(Weighting):
    """A weight of the error of the noise."""

    @property
    def space(self) -> prediction.Parameterization | None:
        return prediction.Noise()


@dataclasses.dataclass(frozen=True)
class Snr(_OfData):
    """SNR on the error of x_0: the plain error of the noise (Salimans & Ho 2022, section 4).

    EDM's loss for its VP and VE columns, ``1 / sigma^2`` where alpha = 1 (Karras et al. 2022, table 1).
    """

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return _snr(log_snr)


@dataclasses.dataclass(frozen=True)
class TruncatedSnr(_OfData):
    """``max(SNR, 1)`` on the error of x_0 (Salimans & Ho 2022, section 4), above 0 at pure noise too."""

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.maximum(_snr(log_snr), 1.0)


@dataclasses.dataclass(frozen=True)
class MinSnr(_OfData):
    """``min(SNR, gamma)`` on the error of x_0 (Hang et al. 2023, equation 7)."""

    gamma: float = 5.0

    def __post_init__(self):
        positive(self, "gamma")

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.exp(jnp.minimum(log_snr, math.log(self.gamma)))


@dataclasses.dataclass(frozen=True)
class SoftMinSnr(_OfData):
    """``gamma SNR / (SNR + gamma)`` on the error of x_0: `MinSnr` without its corner (Crowson et al. 2024).

    k-diffusion's weighting "soft-min-snr" with ``gamma = 1 / sigma_data^2``.
    """

    gamma: float = 4.0

    def __post_init__(self):
        positive(self, "gamma")

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.gamma * jax.nn.sigmoid(log_snr - math.log(self.gamma))


@dataclasses.dataclass(frozen=True)
class Debiased(_OfData):
    """``sqrt(SNR)`` on the error of x_0, ``1 / sqrt(SNR)`` on the error of the noise (Yu et al. 2024)."""

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.sqrt(_snr(log_snr))


@dataclasses.dataclass(frozen=True)
class P2(_OfNoise):
    """``1 / (k + SNR)^gamma`` on the error of the noise (Choi et al. 2022, "P2 weighting", equation 8)."""

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self):
        positive(self, "k")
        expect(self.gamma >= 0, "gamma", self.gamma, "a power >= 0", "try 0.5 or 1.0")

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return (self.k + _snr(log_snr)) ** -self.gamma


@dataclasses.dataclass(frozen=True)
class Edm(_OfData):
    """``(s^2 + sigma_data^2) / (s sigma_data)^2`` on the error of x_0, ``s = sigma / alpha``.

    Equals a plain squared error of the output of `prediction.Edm` (Karras et al. 2022, table 1 and equation
    8).
    """

    sigma_data: float = 0.5

    def __post_init__(self):
        positive(self, "sigma_data")

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.sigma_data**-2 + _snr(log_snr)


@dataclasses.dataclass(frozen=True)
class Sigmoid(_OfNoise):
    """``sigmoid(bias - log-SNR)`` on the error of the noise (Kingma & Gao 2023; Hoogeboom et al. 2024, "SiD2").

    The papers' weight is per unit of log-SNR: pair it with `time_sampling.UniformLogSnr`.
    """

    bias: float = 0.0

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jax.nn.sigmoid(self.bias - log_snr)


def _snr(log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.exp(jnp.minimum(log_snr, MAX_LOG_SNR))
