"""Euler and Heun in the coordinates of Karras et al. 2022: x / alpha and s = sigma / alpha.

There the probability flow reads ``d(x / alpha) / ds = noise`` for every process, so one implementation serves all.
"""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp

from jaxdiff.errors import expect
from jaxdiff.process.gaussian import Process
from jaxdiff.sampling.base import FixedCalls
from jaxdiff.sampling.noise import noise_like
from jaxdiff.sampling.protocols import Denoise, SamplerState
from jaxdiff.typing import Data, Keys, Scalar

MAX_CHURN = math.sqrt(2) - 1  # more would add more noise than there is


@dataclasses.dataclass(frozen=True)
class Euler(FixedCalls):
    """Euler's method: first order; without churn the same as `Ddim(eta=0.0)`.

    Attributes:
      churn: fraction by which each step first raises the noise level, ``gamma`` in Karras et al. 2022, algorithm 2.
        Their total ``S_churn`` over N steps is ``churn = min(S_churn / N, sqrt(2) - 1)``.
      churn_min, churn_max: the noise levels ``sigma / alpha`` between which steps raise it.
      noise_scale: standard deviation of the added noise, ``S_noise`` in the paper.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = 1e9
    noise_scale: float = 1.0

    def __post_init__(self):
        expect(
            0 <= self.churn <= MAX_CHURN + 1e-6,
            "churn",
            self.churn,
            "a fraction in [0, sqrt(2) - 1]",
            "divide S_churn by the steps",
        )

    def step(
        self, denoise: Denoise, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        prediction, guidance = denoise(*self._churned(process, state.x, t, keys), state.guidance)
        alpha, sigma = process.signal(t_next)
        # This is alpha (x / alpha_t + (s_next - s) noise), without its division by alpha_t.
        return SamplerState(alpha * prediction.x_0 + sigma * prediction.noise, guidance=guidance)

    def _churned(self, process: Process, x: Data, t: Scalar, keys: Keys) -> tuple[Data, Scalar]:
        """Noise added to x up to the level ``(1 + churn) s``, and the time of that level."""
        if self.churn == 0:
            return x, t
        alpha, sigma = process.signal(t)
        alpha_safe = jnp.where(alpha == 0, 1.0, alpha)
        level = sigma / alpha_safe
        active = (alpha > 0) & (level >= self.churn_min) & (level <= self.churn_max)
        t_hat = jnp.where(active, process.time(process.log_snr(t) - 2 * math.log1p(self.churn)), t)
        # The level that t_hat really has, so that the added noise matches the time that the denoiser is called with.
        alpha_hat, sigma_hat = process.signal(t_hat)
        added = jnp.maximum(jnp.square(sigma_hat) - jnp.square(alpha_hat * level), 0.0)
        churned = alpha_hat / alpha_safe * x + jnp.sqrt(added) * self.noise_scale * noise_like(keys, x)
        return jnp.where(active, churned, x), t_hat


@dataclasses.dataclass(frozen=True)
class Heun(Euler):
    """Heun's method: the second-order stochastic sampler of EDM (Karras et al. 2022, algorithm 2)."""

    calls_per_step: ClassVar[int] = 2

    def step(
        self, denoise: Denoise, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        x, t = self._churned(process, state.x, t, keys)
        (x_0, noise, _), guidance = denoise(x, t, state.guidance)
        alpha, sigma = process.signal(t_next)
        x_next = alpha * x_0 + sigma * noise
        # The trapezoidal rule adds (s_next - s) / 2 of the change of slope. From pure noise, where s is
        # infinite, the step stays Euler's.
        alpha_t, sigma_t = process.signal(t)
        half_step = (sigma - alpha * sigma_t / jnp.where(alpha_t == 0, 1.0, alpha_t)) / 2
        end, guidance = denoise(x_next, t_next, guidance)
        change = end.noise - noise
        return SamplerState(x_next + jnp.where(alpha_t == 0, 0.0, half_step) * change, guidance=guidance)
