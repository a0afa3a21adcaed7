"""PNDM and PLMS: the linear multistep method of fourth order, with first steps that need no history.

The first steps take more calls than the others, in a branch, since the scan of the loop has one body for all.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.protocols import Denoise, SamplerState
from jaxdiff.sampling.samplers.adams import AdamsBashforth, mean_change, stretch
from jaxdiff.typing import Data, Keys, Scalar

NoiseAt = Callable[[Data, Scalar, Any], tuple[Data, Any]]
"""``(mean noise on the way, time, guidance state) -> (predicted noise at that time, guidance state)``."""


@dataclasses.dataclass(frozen=True)
class Pndm:
    """PNDM: three steps of the pseudo Runge-Kutta method at four calls each, then one call per step.

    Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds", algorithm 2. The transfer part is
    DDIM's step along a mean of predicted noise. Of second order, as the paper says; of fourth where steps of time are
    equal steps of ``sigma / alpha``.
    """

    starting: ClassVar[int] = 3  # steps
    extra: ClassVar[int] = 3  # additional calls in each of them

    def calls(self, steps: int) -> int:
        return steps + self.extra * min(steps, self.starting)

    def init(self, x: Data) -> SamplerState:
        return AdamsBashforth().init(x)

    def step(
        self, denoise: Denoise, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        prediction, guidance = denoise(state.x, t, state.guidance)
        past, noise = state.history, prediction.noise

        def noise_at(mean: Data, s: Scalar, guidance: Any) -> tuple[Data, Any]:
            found, guidance = denoise(_transfer(process, prediction, mean, t, s), s, guidance)
            return found.noise, guidance

        def start(guidance: Any) -> tuple[Data, Any]:
            mean, guidance = self._start(noise_at, noise, t, t_next, guidance)
            return mean - noise, guidance

        def multistep(guidance: Any) -> tuple[Data, Any]:
            return mean_change(past, noise), guidance

        starts = jnp.isinf(past.lengths[self.starting - 1])
        change, guidance = jax.lax.cond(starts, start, multistep, guidance)
        x = _transfer(process, prediction, noise + change, t, t_next)
        return SamplerState(x, past.and_now(noise, jnp.ones_like(t)), guidance)

    def _start(
        self, noise_at: NoiseAt, noise: Data, t: Scalar, t_next: Scalar, guidance: Any
    ) -> tuple[Data, Any]:
        """The mean noise of a first step that begins with `noise`."""
        middle = (t + t_next) / 2
        second, guidance = noise_at(noise, middle, guidance)
        third, guidance = noise_at(second, middle, guidance)
        fourth, guidance = noise_at(third, t_next, guidance)
        return (noise + 2 * second + 2 * third + fourth) / 6, guidance


@dataclasses.dataclass(frozen=True)
class Plms(Pndm):
    """PLMS: PNDM with a first step of two calls, the pseudo improved Euler method; released with Stable Diffusion."""

    starting: ClassVar[int] = 1
    extra: ClassVar[int] = 1

    def _start(
        self, noise_at: NoiseAt, noise: Data, t: Scalar, t_next: Scalar, guidance: Any
    ) -> tuple[Data, Any]:
        second, guidance = noise_at(noise, t_next, guidance)
        return (noise + second) / 2, guidance


def _transfer(process: Process, prediction: Prediction, noise: Data, t: Scalar, s: Scalar) -> Data:
    """DDIM's step from t to s along this noise."""
    alpha, sigma = process.signal(s)
    change = stretch(process, t, s) * (noise - prediction.noise)
    return alpha * prediction.x_0 + sigma * prediction.noise + change
