"""Modifiers that keep the predicted image in the range of images."""

import dataclasses

import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.process.gaussian import Process, Signal
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.loop import Conditions, DenoiseFn
from jaxdiff.typing import Images, Keys, Scalar


@dataclasses.dataclass(frozen=True)
class StaticThreshold:
    """The predicted image clipped to [-limit, limit] (Ho et al. 2020; "static thresholding" in Saharia et al. 2022)."""

    limit: float = 1.0

    def __post_init__(self):
        _require_limit(self.limit)

    def __call__(self, denoise: DenoiseFn, process: Process, conditions: Conditions, keys: Keys) -> DenoiseFn:
        def clipped(x: Images, t: Scalar) -> Prediction:
            found = denoise(x, t)
            return with_image(found, jnp.clip(found.x_0, -self.limit, self.limit), process.signal(t))

        return clipped


@dataclasses.dataclass(frozen=True)
class DynamicThreshold:
    """The predicted image clipped to [-s, s] and divided by s / limit (Saharia et al. 2022, "Imagen", section 2.3).

    s is this percentile of the image's absolute values, of each image on its own, but never less than the limit: an
    image in range stays as it is.

    Attributes:
      percentile: as a share.
      limit: of the values of images.
    """

    percentile: float = 0.995
    limit: float = 1.0

    def __post_init__(self):
        require(
            0 < self.percentile <= 1,
            "percentile",
            self.percentile,
            "it is a share of the pixels",
            "try 0.995",
        )
        _require_limit(self.limit)

    def __call__(self, denoise: DenoiseFn, process: Process, conditions: Conditions, keys: Keys) -> DenoiseFn:
        def clipped(x: Images, t: Scalar) -> Prediction:
            found = denoise(x, t)
            s = jnp.quantile(jnp.abs(found.x_0), self.percentile, axis=(1, 2, 3), keepdims=True)
            s = jnp.maximum(s, self.limit)
            return with_image(found, jnp.clip(found.x_0, -s, s) * (self.limit / s), process.signal(t))

        return clipped


def with_image(prediction: Prediction, x_0: Images, signal: Signal) -> Prediction:
    """The prediction with another image, and with the noise that makes up for it in ``alpha x_0 + sigma noise``."""
    noise = prediction.noise + signal.alpha / signal.sigma * (prediction.x_0 - x_0)
    return prediction._replace(x_0=x_0, noise=noise)


def _require_limit(limit: float) -> None:
    require(limit > 0, "limit", limit, "no image would be left", "give 1.0 for images between -1 and 1")
