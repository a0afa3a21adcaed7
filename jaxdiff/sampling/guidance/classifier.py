"""Guidance by the gradient of a density: what a classifier, or anything else, says about noisy images."""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.loop import Conditions, DenoiseFn
from jaxdiff.typing import Array, Float, Images, Keys, Scalar


@runtime_checkable
class LogDensity(Protocol):
    """``log p(y | x_t)`` of each image at one time for all, up to a constant; y is what it likes of the conditions."""

    def __call__(self, x: Images, t: Scalar, conditions: Conditions) -> Float[Array, "batch"]: ...


@dataclasses.dataclass(frozen=True)
class ClassifierGuidance:
    """``noise - scale sigma grad log p(y | x_t)``, and the image that goes with it.

    Dhariwal & Nichol 2021, algorithm 2. With scale 1 and the true density it is the conditional denoiser, by Bayes'
    rule. Their algorithm 1 for stochastic samplers moves the mean of a step by its variance times the gradient instead,
    which for small steps is the same.

    At pure noise (alpha = 0) the prediction stays as it is: ``x_t`` tells nothing of y there, nor its gradient.

    Attributes:
      log_density: the classifier. `Encoded.value` holds a condition as it was given.
      scale: 0 is off; above 1 sharpens the density.
    """

    log_density: LogDensity
    scale: float = 1.0

    def __call__(self, denoise: DenoiseFn, process: Process, conditions: Conditions, keys: Keys) -> DenoiseFn:
        def total(x: Images, t: Scalar) -> Scalar:
            return jnp.sum(self.log_density(x, t, conditions))

        def guided(x: Images, t: Scalar) -> Prediction:
            found, (alpha, sigma) = denoise(x, t), process.signal(t)
            step = self.scale * sigma * jax.grad(total)(x, t)
            step = jnp.where(alpha == 0, 0.0, step)
            x_0 = found.x_0 + sigma / jnp.where(alpha == 0, sigma, alpha) * step
            return found._replace(x_0=x_0, noise=found.noise - step)

        return guided
