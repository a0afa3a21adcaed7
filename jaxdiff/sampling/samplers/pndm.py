"""PNDM and PLMS: the linear multistep method of fourth order, with first steps that need no past.

The first steps take more calls than the others, in a branch, since the scan of the loop has one body for all. Guidance
that remembers from call to call is refused there, as in every branch of a sampler; `AdamsBashforth` has none.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.loop import DenoiseFn, SamplerState
from jaxdiff.sampling.samplers.adams import AdamsBashforth, mean_change, stretch
from jaxdiff.typing import Images, Keys, Scalar

Noise = Callable[[Images, Scalar], Images]
"""(mean predicted noise on the way, the time that is gone to) -> the predicted noise there."""


@dataclasses.dataclass(frozen=True)
class Pndm:
    """Three steps of the pseudo Runge-Kutta method at four calls each, then one call a step.

    Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds", algorithm 2. The transfer part is
    DDIM's step along a mean of predicted noise. Of second order, as the paper says; of fourth where steps of time are
    equal steps of ``sigma / alpha``.
    """

    starting: ClassVar[int] = 3  # steps
    extra: ClassVar[int] = 3  # calls in each of them

    def calls(self, steps: int) -> int:
        return steps + self.extra * min(steps, self.starting)

    def init(self, x: Images) -> SamplerState:
        return AdamsBashforth().init(x)

    def step(
        self, denoise: DenoiseFn, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        prediction, past = denoise(state.x, t), state.history

        def start() -> Images:
            def noise_at(noise: Images, s: Scalar) -> Images:
                return denoise(_transfer(process, prediction, noise, t, s), s).noise

            return self._start(noise_at, prediction.noise, t, t_next) - prediction.noise

        def go_on() -> Images:
            return mean_change(past, prediction.noise)

        change = jax.lax.cond(jnp.isinf(past.lengths[self.starting - 1]), start, go_on)
        x = _transfer(process, prediction, prediction.noise + change, t, t_next)
        return SamplerState(x, past.and_now(prediction.noise, jnp.ones_like(t)))

    def _start(self, noise_at: Noise, noise: Images, t: Scalar, t_next: Scalar) -> Images:
        """The mean noise of a step that begins with `noise`."""
        middle = (t + t_next) / 2
        second = noise_at(noise, middle)
        third = noise_at(second, middle)
        fourth = noise_at(third, t_next)
        return (noise + 2 * second + 2 * third + fourth) / 6


@dataclasses.dataclass(frozen=True)
class Plms(Pndm):
    """The same with a first step of two calls, the pseudo improved Euler method: as released with Stable Diffusion."""

    starting: ClassVar[int] = 1
    extra: ClassVar[int] = 1

    def _start(self, noise_at: Noise, noise: Images, t: Scalar, t_next: Scalar) -> Images:
        return (noise + noise_at(noise, t_next)) / 2


def _transfer(process: Process, prediction: Prediction, noise: Images, t: Scalar, s: Scalar) -> Images:
    """From t to s along this noise."""
    alpha, sigma = process.signal(s)
    change = stretch(process, t, s) * (noise - prediction.noise)
    return alpha * prediction.x_0 + sigma * prediction.noise + change
