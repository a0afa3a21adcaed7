"""The last step of published samplers in single precision."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.protocols import Conditions, GuidedDenoiser
from jaxdiff.typing import Data, Keys, Scalar


@dataclasses.dataclass(frozen=True)
class RoundedEnd:
    """Multiplies x_0 at the model's first step by ``beta_1 / sigma_1^2``, which is 1 but for rounding.

    diffusers' `UnCLIPScheduler` does so. With the rounded `Table` of cosine betas it is 0.9995 in single precision.
    That is less than a tenth of a level of an image, but the first step of the next stage, from nearly pure noise,
    amplifies it.
    """

    def __call__(
        self, denoise: GuidedDenoiser, process: Process, conditions: Conditions, keys: Keys
    ) -> GuidedDenoiser:
        schedule: Any = getattr(process, "schedule", None)
        steps, beta = schedule.steps, float(schedule.betas.array()[0])

        def scaled(prediction: Prediction, x: Data, t: Scalar) -> Prediction:
            first = jnp.abs(steps * t - 1) < 0.5
            factor = jnp.where(first, beta / jnp.square(process.signal(t).sigma), 1.0)
            return prediction._replace(x_0=factor.astype(prediction.x_0.dtype) * prediction.x_0)

        return denoise.then(scaled)
