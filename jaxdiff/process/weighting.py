"""Loss weights: how much each noise level counts, and in which quantity its error is measured.

A weighting names a `space`, the target in which squared errors are taken, and gives a weight for each
log-SNR. So one weighting means the same whatever the network outputs: an error e of the output counts
``weighting(log_snr) * (error_ratio * e)^2``, with `jaxdiff.process.prediction.error_ratio`.
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
class Flat:
    """The plain squared error of the network's output (DDPM's "simple" loss, flow matching)."""

    @property
    def space(self) -> prediction.Parameterization | None:
        return None

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.ones_like(log_snr)


@dataclasses.dataclass(frozen=True)
class MinSnr:
    """``min(SNR, gamma)`` on the error of the image (Hang et al. 2023, equation 7)."""

    gamma: float = 5.0

    def __post_init__(self):
        require(self.gamma > 0, "gamma", self.gamma, "the weight would vanish", "try 5.0")

    @property
    def space(self) -> prediction.Parameterization | None:
        return prediction.Data()

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.exp(jnp.minimum(log_snr, math.log(self.gamma)))


@dataclasses.dataclass(frozen=True)
class Edm:
    """``(s^2 + sigma_data^2) / (s sigma_data)^2`` on the error of the image, ``s = sigma / alpha``.

    Equals a plain squared error of the output of `prediction.Edm` (Karras et al. 2022, table 1 and equation
    8).
    """

    sigma_data: float = 0.5

    def __post_init__(self):
        require(self.sigma_data > 0, "sigma_data", self.sigma_data, "it is a standard deviation", "try 0.5")

    @property
    def space(self) -> prediction.Parameterization | None:
        return prediction.Data()

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.sigma_data**-2 + jnp.exp(jnp.minimum(log_snr, MAX_LOG_SNR))


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """``sigmoid(bias - log-SNR)`` on the error of the noise (Kingma & Gao 2023; Hoogeboom et al. 2024).

    The papers' weight is per unit of log-SNR: pair it with `time_sampling.UniformLogSnr`.
    """

    bias: float = 0.0

    @property
    def space(self) -> prediction.Parameterization | None:
        return prediction.Noise()

    def __call__(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jax.nn.sigmoid(self.bias - log_snr)
