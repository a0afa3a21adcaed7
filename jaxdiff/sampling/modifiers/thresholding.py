"""Thresholding: keeps the predicted x_0 in the range of images."""

import dataclasses

import jax.numpy as jnp

from jaxdiff.errors import between, positive
from jaxdiff.process.gaussian import Process, Signal
from jaxdiff.process.per_example import data_axes
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.protocols import Conditions, GuidedDenoiser
from jaxdiff.typing import Data, Keys, Scalar


@dataclasses.dataclass(frozen=True)
class StaticThreshold:
    """Static thresholding: clips the predicted x_0 to [-limit, limit] (Ho et al. 2020; Saharia et al. 2022).

    Attributes:
      limit: bound of the values of clean data.
      keep_noise: leave the predicted noise as it is, as DDIM in diffusers, so that the pair no longer makes up ``x_t``.
    """

    limit: float = 1.0
    keep_noise: bool = False

    def __post_init__(self):
        positive(self, "limit")

    def __call__(
        self, denoise: GuidedDenoiser, process: Process, conditions: Conditions, keys: Keys
    ) -> GuidedDenoiser:
        def clipped(prediction: Prediction, x: Data, t: Scalar) -> Prediction:
            x_0 = jnp.clip(prediction.x_0, -self.limit, self.limit)
            if self.keep_noise:
                return prediction._replace(x_0=x_0)
            return with_x_0(prediction, x_0, process.signal(t))

        return denoise.then(clipped)


@dataclasses.dataclass(frozen=True)
class DynamicThreshold:
    """Dynamic thresholding: clips x_0 to [-s, s] and divides by s / limit (Saharia et al. 2022, "Imagen", section 2.3).

    s is a percentile of the absolute values of each example, but at least the limit: data in range are unchanged.

    Attributes:
      percentile: as a fraction in (0, 1].
      limit: bound of the values of clean data.
    """

    percentile: float = 0.995
    limit: float = 1.0

    def __post_init__(self):
        between(self, "percentile", 0.0, 1.0, open_low=True)
        positive(self, "limit")

    def __call__(
        self, denoise: GuidedDenoiser, process: Process, conditions: Conditions, keys: Keys
    ) -> GuidedDenoiser:
        def clipped(prediction: Prediction, x: Data, t: Scalar) -> Prediction:
            x_0 = prediction.x_0
            s = jnp.quantile(jnp.abs(x_0), self.percentile, axis=data_axes(x_0), keepdims=True)
            s = jnp.maximum(s, self.limit)
            return with_x_0(prediction, jnp.clip(x_0, -s, s) * (self.limit / s), process.signal(t))

        return denoise.then(clipped)


def with_x_0(prediction: Prediction, x_0: Data, signal: Signal) -> Prediction:
    """The prediction with another x_0, and with the noise that keeps ``x_t = alpha x_0 + sigma noise``."""
    noise = prediction.noise + signal.alpha / signal.sigma * (prediction.x_0 - x_0)
    return prediction._replace(x_0=x_0, noise=noise)
