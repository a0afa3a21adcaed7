"""One process in the coordinates of another: noisy images of the same log-SNR differ by a factor only.

``x / alpha`` and ``sigma / alpha`` mean the same for every process (Karras et al. 2022, appendix B), so a model that
was trained on one process serves samplers, grids and losses that work in another.
"""

from collections.abc import Callable

import jax.numpy as jnp

from jaxdiff.process.gaussian import Process, expand
from jaxdiff.process.prediction import Prediction
from jaxdiff.typing import Array, Float, Images, Scalar

Denoise = Callable[[Images, Scalar], Prediction]
"""(noisy images, one time for all of them) -> prediction."""


def convert(
    source: Process, target: Process, x: Images, t: Float[Array, "..."]
) -> tuple[Images, Float[Array, "..."]]:
    """Noisy images of `source` at time t as noisy images of `target`, and their time there.

    The pair ``(x_0, noise)`` that makes them, and the log-SNR, stay the same. Only pure noise and clean data, whose
    log-SNR is infinite, become times 1 and 0 of `target`, though it may not quite reach them.

    Args:
      source, target: the processes.
      x: noisy images.
      t: one time for each image, or one for all.
    """
    log_snr = source.log_snr(t)
    from_image = log_snr > 0
    infinite = jnp.isinf(log_snr)
    t_target = target.time(jnp.where(infinite, 0.0, log_snr))
    t_target = jnp.where(infinite, jnp.where(from_image, 0.0, 1.0), t_target)
    (alpha, sigma), (alpha_target, sigma_target) = source.signal(t), target.signal(t_target)
    # Both quotients are the factor; the larger part of the image gives it, since the other may be 0.
    numerator = jnp.where(from_image, alpha_target, sigma_target)
    return expand(numerator / jnp.where(from_image, alpha, sigma), x) * x, t_target


def adapt(denoise: Denoise, source: Process, target: Process) -> Denoise:
    """The denoiser of a model of `source`, for noisy images and times of `target`."""

    def adapted(x: Images, t: Scalar) -> Prediction:
        return denoise(*convert(target, source, x, t))

    return adapted
