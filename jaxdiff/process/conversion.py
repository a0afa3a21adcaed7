"""Conversion between processes: noisy data of the same log-SNR differ only by a factor.

``x / alpha`` and ``sigma / alpha`` mean the same for every process (Karras et al. 2022, appendix B), so a model
trained on one process can be used with samplers, grids and losses of another.
"""

from collections.abc import Callable

import jax.numpy as jnp

from jaxdiff.process.gaussian import Process, expand
from jaxdiff.process.prediction import Prediction
from jaxdiff.typing import Array, Data, Float, Scalar

Denoise = Callable[[Data, Scalar], Prediction]
"""``(x_t, t) -> prediction``, with one time for the whole batch."""


def convert(
    source: Process, target: Process, x: Data, t: Float[Array, "..."]
) -> tuple[Data, Float[Array, "..."]]:
    """Noisy data of `source` at time t as noisy data of `target`, and their time there.

    The pair ``(x_0, noise)`` and the log-SNR stay the same. Only pure noise and clean data, whose log-SNR is infinite,
    become times 1 and 0 of `target`, though it may not quite reach them.

    Args:
      source, target: the processes.
      x: noisy data.
      t: one time for each example, or one for all.
    """
    log_snr = source.log_snr(t)
    from_data = log_snr > 0
    infinite = jnp.isinf(log_snr)
    t_target = target.time(jnp.where(infinite, 0.0, log_snr))
    t_target = jnp.where(infinite, jnp.where(from_data, 0.0, 1.0), t_target)
    (alpha, sigma), (alpha_target, sigma_target) = source.signal(t), target.signal(t_target)
    # Both quotients equal the factor. The one with the larger denominator is used, since the other may be 0.
    numerator = jnp.where(from_data, alpha_target, sigma_target)
    return expand(numerator / jnp.where(from_data, alpha, sigma), x) * x, t_target


def adapt(denoise: Denoise, source: Process, target: Process) -> Denoise:
    """The denoiser of a model trained on `source`, for noisy data and times of `target`."""

    def adapted(x: Data, t: Scalar) -> Prediction:
        return denoise(*convert(target, source, x, t))

    return adapted
