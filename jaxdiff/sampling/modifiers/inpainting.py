"""Inpainting of partially known data, with a model that was not trained for it."""

import dataclasses

import jax.numpy as jnp

from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.protocols import GuidedDenoiser, KnownData
from jaxdiff.typing import Data, Scalar


@dataclasses.dataclass(frozen=True)
class Replacement:
    """Replacement: the known part of ``x_t`` is the known data diffused to t (Song et al. 2021, section 5).

    Where the data are known, so is the prediction: ``x_0`` is the known value, and the noise is the rest of ``x_t``.
    The sampler does everything else, with the noise that it uses everywhere: a deterministic one keeps the noise of the
    first time, a stochastic one renews it by the posterior ``q(x_s | x_t, x_0)``, whose marginal at every time is that
    of "RePaint"'s equation 8 (Lugmayr et al. 2022). Known values are reproduced exactly. A sampler that adds more noise
    than the posterior has, such as `Ancestral("large")`, adds it to them too while it runs.

    The unknown part is predicted as if the known noise were its own, so that samples only approximate the conditional
    distribution. The grid `RePaint`, which repeats its steps, improves the approximation.
    """

    def __call__(self, denoise: GuidedDenoiser, process: Process, known: KnownData) -> GuidedDenoiser:
        def completed(prediction: Prediction, x: Data, t: Scalar) -> Prediction:
            alpha, sigma = process.signal(t)
            fraction = prediction.variance_fraction
            if fraction is not None:  # the posterior's variance, since x_0 is certain
                fraction = jnp.where(known.mask, fraction, 0.0)
            return Prediction(
                jnp.where(known.mask, prediction.x_0, known.values),
                jnp.where(known.mask, prediction.noise, (x - alpha * known.values) / sigma),
                fraction,
            )

        return denoise.then(completed)
