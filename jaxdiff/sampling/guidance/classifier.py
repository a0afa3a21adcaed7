"""Classifier guidance: by the gradient of a log-density of the condition given noisy data."""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.protocols import Conditions, GuidedDenoiser
from jaxdiff.typing import Array, Data, Float, Keys, Scalar


@runtime_checkable
class LogDensity(Protocol):
    """``log p(y | x_t)`` per example, up to a constant, with one time for the batch; y is taken from the conditions."""

    def __call__(self, x: Data, t: Scalar, conditions: Conditions) -> Float[Array, "batch"]: ...


@dataclasses.dataclass(frozen=True)
class ClassifierGuidance:
    """Classifier guidance: ``noise - scale sigma grad log p(y | x_t)``, with the matching x_0.

    Dhariwal & Nichol 2021, algorithm 2. With scale 1 and the true density it is the conditional denoiser, by Bayes'
    rule. Their algorithm 1 for stochastic samplers moves the mean of a step by its variance times the gradient instead,
    which for small steps is the same.

    At pure noise (alpha = 0) the prediction is unchanged: ``x_t`` is independent of y there, and so is its gradient.

    Attributes:
      log_density: the classifier. `Encoded.value` holds a condition before it is embedded.
      scale: 0 is off; above 1 sharpens the density.
    """

    log_density: LogDensity
    scale: float = 1.0

    def __call__(
        self, denoise: GuidedDenoiser, process: Process, conditions: Conditions, keys: Keys
    ) -> GuidedDenoiser:
        def total(x: Data, t: Scalar) -> Scalar:
            return jnp.sum(self.log_density(x, t, conditions))

        def guided(prediction: Prediction, x: Data, t: Scalar) -> Prediction:
            alpha, sigma = process.signal(t)
            step = self.scale * sigma * jax.grad(total)(x, t)
            step = jnp.where(alpha == 0, 0.0, step)
            x_0 = prediction.x_0 + sigma / jnp.where(alpha == 0, sigma, alpha) * step
            return prediction._replace(x_0=x_0, noise=prediction.noise - step)

        return denoise.then(guided)
