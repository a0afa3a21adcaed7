"""Learned grids: the times of a sampler of few steps, fitted to exact samples.

The error of a grid is the mean squared distance of its samples from those of many steps, from the same noise. Its
gradient goes through all steps of the sampler (Watson et al. 2022, "Learning fast samplers", in another distance; Tong
et al. 2024, "Learning to discretize denoising diffusion ODEs"). The model is not trained.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff.process.gaussian import Process
from jaxdiff.typing import Array, Float, Scalar

CLOSEST = 1e-3
"""The least distance between log-SNRs of neighbouring times."""

Gradient = Callable[[Array, int], tuple[Scalar, Array]]
"""``(log-SNRs, number of an iteration) -> (error, its gradient)``."""


class Fitted(NamedTuple):
    """Log-SNRs of the times after the first, and the error of each iteration before its update."""

    log_snr: Float[np.ndarray, "later"]
    errors: Float[np.ndarray, "iterations"]


@dataclasses.dataclass(frozen=True, eq=False)
class After:
    """A given first time, which may be pure noise, and then times of log-SNRs, which may be traced.

    Attributes:
      first: the first time.
      log_snr: [steps - 1], increasing.
    """

    first: float
    log_snr: Float[Array, "later"]

    def __call__(self, process: Process, steps: int) -> Float[Array, "steps"]:
        times = process.time(self.log_snr)
        return jnp.concatenate([jnp.full(1, self.first, times.dtype), times])


def fit(gradient: Gradient, log_snr: Float[np.ndarray, "later"], iterations: int, rate: float) -> Fitted:
    """Adam on the first log-SNR and on the logarithms of the distances between the others, which stay positive.

    Args:
      gradient: of the error with respect to log-SNRs; iterations may take different samples.
      log_snr: of the times to start from, but the first; increasing.
      iterations, rate: of Adam, whose rate falls to 0 as a cosine.
    """

    @jax.jit
    def increasing(free: Array) -> Array:
        return free[0] + jnp.concatenate([jnp.zeros_like(free[:1]), jnp.cumsum(CLOSEST + jnp.exp(free[1:]))])

    optimizer = optax.adam(optax.cosine_decay_schedule(rate, iterations))

    @jax.jit
    def descended(free: Array, state: Any, slope: Array) -> tuple[Any, Any]:
        (pulled,) = jax.vjp(increasing, free)[1](slope.astype(free.dtype))
        updates, state = optimizer.update(pulled, state)
        return optax.apply_updates(free, updates), state

    distances = np.maximum(np.diff(log_snr) - CLOSEST, CLOSEST)
    free = jnp.asarray(np.concatenate([log_snr[:1], np.log(distances)]), jnp.float32)
    state, errors = optimizer.init(free), []
    for number in range(iterations):
        error, slope = gradient(increasing(free), number)
        free, state = descended(free, state, slope)
        errors.append(float(error))
    return Fitted(np.asarray(increasing(free)), np.asarray(errors))
