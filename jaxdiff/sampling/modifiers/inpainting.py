"""Completing images of which a part is known, with a model that was not trained for it."""

import dataclasses

import jax.numpy as jnp

from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.loop import DenoiseFn, Known
from jaxdiff.typing import Images, Scalar


@dataclasses.dataclass(frozen=True)
class Replacement:
    """What is known of ``x_t`` is the known image diffused to t (Song et al. 2021, section 5).

    Where the image is known, so is the prediction: ``x_0`` is the known pixel, and the noise is what ``x_t`` holds
    besides. The sampler does the rest, with the noise that it uses everywhere: a deterministic one keeps that of the
    first time, a stochastic one renews it by the posterior ``q(x_s | x_t, x_0)``, which at every time has the law of
    "RePaint"'s equation 8 (Lugmayr et al. 2022). Known pixels come out exactly. A sampler that adds more noise than the
    posterior has, such as `Ancestral("large")`, adds it to them too while it runs.

    The unknown part never learns that the known noise is not its own, so that samples are not quite those of the
    conditional distribution. The grid `RePaint`, which goes through its steps again and again, brings them nearer.
    """

    def __call__(self, denoise: DenoiseFn, process: Process, known: Known) -> DenoiseFn:
        def completed(x: Images, t: Scalar) -> Prediction:
            found, (alpha, sigma) = denoise(x, t), process.signal(t)
            fraction = found.variance_fraction
            return Prediction(
                jnp.where(known.mask, found.x_0, known.images),
                jnp.where(known.mask, found.noise, (x - alpha * known.images) / sigma),
                None
                if fraction is None
                else jnp.where(known.mask, fraction, 0.0),  # the posterior's: x_0 is certain
            )

        return completed
