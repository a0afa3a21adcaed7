"""The last step of published samplers in single precision."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxdiff.errors import expect
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.process.table import Table
from jaxdiff.sampling.protocols import Conditions, GuidedDenoiser
from jaxdiff.typing import Data, Keys, Scalar


@dataclasses.dataclass(frozen=True)
class RoundedEnd:
    """Multiplies x_0 at the model's first step by ``beta_1 / sigma_1^2``, which is 1 but for rounding.

    diffusers' `UnCLIPScheduler` does so. The process has a `Table` of betas. With a rounded one of cosine betas the
    factor is 0.9995 in single precision. That is less than a tenth of a level of an image, but the first step of the
    next stage, from nearly pure noise, amplifies it.

    Raises:
      UserError: the process has no `Table`.
    """

    def __call__(
        self, denoise: GuidedDenoiser, process: Process, conditions: Conditions, keys: Keys
    ) -> GuidedDenoiser:
        schedule: Any = getattr(process, "schedule", None)
        fix = "leave RoundedEnd out"
        expect(isinstance(schedule, Table), "modifiers", type(self).__name__, "a process on a Table", fix)
        steps, beta = schedule.steps, float(schedule.betas.array()[0])

        def scaled(prediction: Prediction, x: Data, t: Scalar) -> Prediction:
            first = jnp.abs(steps * t - 1) < 0.5
            factor = jnp.where(first, beta / jnp.square(process.signal(t).sigma), 1.0)
            return prediction._replace(x_0=factor.astype(prediction.x_0.dtype) * prediction.x_0)

        return denoise.then(scaled)
