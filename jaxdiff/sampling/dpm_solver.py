"""DPM-Solver++: exponential integrators in the half-log-SNR."""

import dataclasses

import jax.numpy as jnp

from jaxdiff.process.gaussian import Process
from jaxdiff.sampling.loop import DenoiseFn, State
from jaxdiff.typing import Images, Keys, Scalar


@dataclasses.dataclass(frozen=True)
class DpmSolver2M:
    """DPM-Solver++(2M): second order with one call per step, by remembering the last (Lu et al. 2022).

    The first step, and the one after a step from pure noise (alpha = 0), are of first order.
    """

    def calls(self, steps: int) -> int:
        return steps

    def init(self, x: Images) -> State:
        return State(x, memory=(jnp.zeros_like(x), jnp.array(jnp.inf, x.dtype)))

    def step(
        self, denoise: DenoiseFn, process: Process, state: State, t: Scalar, t_next: Scalar, keys: Keys
    ) -> State:
        previous_x_0, previous_h = state.memory
        x_0, noise, _ = denoise(state.x, t)
        alpha, sigma = process.signal(t_next)
        h = (process.log_snr(t_next) - process.log_snr(t)) / 2
        # From the slope of x_0 in the half-log-SNR over the last step; a last step of infinite length tells
        # no slope.
        ahead = jnp.where(jnp.isinf(previous_h), 0.0, h / (2 * previous_h)) * (x_0 - previous_x_0)
        x = alpha * x_0 + sigma * noise - alpha * jnp.expm1(-h) * ahead
        return State(x, memory=(x_0, h))
