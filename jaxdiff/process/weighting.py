"""Loss weights: how much each noise level counts, and in which quantity its error is measured.

A weighting names a `space`, the target in which squared errors are taken, and gives a weight for each
log-SNR. So one weighting means the same whatever the network outputs: an error e of the output counts
``weighting(log_snr) * (error_ratio * e)^2``, with `jaxdiff.process.prediction.error_ratio`.

A weight stands beside the law of training times and is not divided by its density. What Kingma & Gao 2023
("Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation", section 3) call w(log-SNR), the
weight of the noise error per unit of log-SNR, is the weight here (in the space of the noise) times the density of the
log-SNR under the law. With `time_sampling.UniformLogSnr` the two are the same up to a constant; under a law of times
the density is ``p(t) / |d log-SNR / dt|``, and the same weighting stresses other levels for another schedule.
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.process import prediction
from jaxdiff.typing import Array, Float

MAX_LOG_SNR = 80.0  # exp() of more is infinite in float32, and infinity times an error of zero is NaN


@runtime_checkable
class Weighting(Protocol):
    """A weight for each log-SNR, of squared errors in the target of `space` (None: the network's own)."""

    @property
    def space(self) -> prediction.Parameterization | None: ...

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]: ...


@dataclasses.dataclass(frozen=True)
class Flat(Weighting):
    """1, whatever the noise level: the plain squared error in any target.

    Without a `space` that is the network's own output (DDPM's "simple" loss, flow matching). ``Flat(space=V())`` is
    "SNR + 1" weighting (Salimans & Ho 2022, section 4), ``Flat(space=prediction.Edm())`` is the weighting `Edm`.
    """

    space: prediction.Parameterization | None = None

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.ones_like(log_snr)


class _OfData(Weighting):
    """A weight of the error of the image."""

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
    """SNR on the error of the image: the plain error of the noise (Salimans & Ho 2022, section 4).

    EDM's loss for its VP and VE columns, ``1 / sigma^2`` where alpha = 1 (Karras et al. 2022, table 1).
    """

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return _snr(log_snr)


@dataclasses.dataclass(frozen=True)
class TruncatedSnr(_OfData):
    """``max(SNR, 1)`` on the error of the image (Salimans & Ho 2022, section 4): pure noise counts too."""

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.maximum(_snr(log_snr), 1.0)


@dataclasses.dataclass(frozen=True)
class MinSnr(_OfData):
    """``min(SNR, gamma)`` on the error of the image (Hang et al. 2023, equation 7)."""

    gamma: float = 5.0

    def __post_init__(self):
        require(self.gamma > 0, "gamma", self.gamma, "the weight would vanish", "try 5.0")

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.exp(jnp.minimum(log_snr, math.log(self.gamma)))


@dataclasses.dataclass(frozen=True)
class SoftMinSnr(_OfData):
    """``gamma SNR / (SNR + gamma)`` on the error of the image: `MinSnr` without its corner (Crowson et al. 2024).

    k-diffusion's weighting "soft-min-snr" with ``gamma = 1 / sigma_data^2``.
    """

    gamma: float = 4.0

    def __post_init__(self):
        require(self.gamma > 0, "gamma", self.gamma, "the weight would vanish", "try 4.0")

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.gamma * jax.nn.sigmoid(log_snr - math.log(self.gamma))


@dataclasses.dataclass(frozen=True)
class Debiased(_OfData):
    """``sqrt(SNR)`` on the error of the image, ``1 / sqrt(SNR)`` on that of the noise (Yu et al. 2024)."""

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.sqrt(_snr(log_snr))


@dataclasses.dataclass(frozen=True)
class P2(_OfNoise):
    """``1 / (k + SNR)^gamma`` on the error of the noise (Choi et al. 2022, "P2 weighting", equation 8)."""

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self):
        require(self.k > 0, "k", self.k, "the weight of pure noise would be infinite", "try 1.0")
        require(self.gamma >= 0, "gamma", self.gamma, "the weight would grow with the SNR", "try 0.5 or 1.0")

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return (self.k + _snr(log_snr)) ** -self.gamma


@dataclasses.dataclass(frozen=True)
class Edm(_OfData):
    """``(s^2 + sigma_data^2) / (s sigma_data)^2`` on the error of the image, ``s = sigma / alpha``.

    Equals a plain squared error of the output of `prediction.Edm` (Karras et al. 2022, table 1 and equation
    8).
    """

    sigma_data: float = 0.5

    def __post_init__(self):
        require(self.sigma_data > 0, "sigma_data", self.sigma_data, "it is a standard deviation", "try 0.5")

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
