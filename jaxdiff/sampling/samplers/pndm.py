"""PNDM and PLMS: the linear multistep method of fourth order, with first steps that need no history.

The first steps take more calls than the others, in a branch, since the scan of the loop has one body for all.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxdiff.errors import one_of
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.protocols import Denoise, SamplerState
from jaxdiff.sampling.samplers.adams import AdamsBashforth, mean_change, stretch
from jaxdiff.typing import Data, Keys, Scalar

ValueAt = Callable[[Data, Scalar, Any], tuple[Data, Any]]
"""``(mean value on the way, time, guidance state) -> (value at that time, guidance state)``."""

INTEGRANDS = ("noise", "v")


@dataclasses.dataclass(frozen=True)
class Pndm:
    """PNDM: three steps of the pseudo Runge-Kutta method at four calls each, then one call per step.

    Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds", algorithm 2. The transfer part is
    DDIM's step along a mean of predicted noise. Of second order, as the paper says; of fourth where steps of time are
    equal steps of ``sigma / alpha``.

    Attributes:
      integrand: of what the mean is: the "noise", or "v", which diffusers takes for models that predict it. Means of v
        are of first order.
    """

    integrand: str = "noise"
    starting: ClassVar[int] = 3  # steps
    extra: ClassVar[int] = 3  # additional calls in each of them

    def __post_init__(self):
        one_of(self, "integrand", INTEGRANDS)

    def calls(self, steps: int) -> int:
        return steps + self.extra * min(steps, self.starting)

    def init(self, x: Data) -> SamplerState:
        return AdamsBashforth().init(x)

    def step(
        self, denoise: Denoise, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        prediction, guidance = denoise(state.x, t, state.guidance)
        past, first = state.history, self._value(process, t, prediction)

        def transfer(mean: Data, s: Scalar) -> Data:
            """DDIM's step from t to s along a mean value."""
            alpha, sigma = process.signal(s)
            change = self._stretch(process, t, s) * (mean - first)
            return alpha * prediction.x_0 + sigma * prediction.noise + change

        def value_at(mean: Data, s: Scalar, guidance: Any) -> tuple[Data, Any]:
            found, guidance = denoise(transfer(mean, s), s, guidance)
            return self._value(process, s, found), guidance

        def start(guidance: Any) -> tuple[Data, Any]:
            mean, guidance = self._start(value_at, first, t, t_next, guidance)
            return mean - first, guidance

        def multistep(guidance: Any) -> tuple[Data, Any]:
            return mean_change(past, first), guidance

        starts = jnp.isinf(past.lengths[self.starting - 1])
        change, guidance = jax.lax.cond(starts, start, multistep, guidance)
        return SamplerState(transfer(first + change, t_next), past.and_now(first, jnp.ones_like(t)), guidance)

    def _value(self, process: Process, t: Scalar, prediction: Prediction) -> Data:
        """The integrand of a prediction at time t."""
        if self.integrand == "noise":
            return prediction.noise
        alpha, sigma = process.signal(t)
        return alpha * prediction.noise - sigma * prediction.x_0

    def _stretch(self, process: Process, t: Scalar, s: Scalar) -> Scalar:
        """What DDIM's step from t to s multiplies a change of the integrand by, at the same ``x_t``."""
        if self.integrand == "noise":
            return stretch(process, t, s)
        (alpha, sigma), (alpha_s, sigma_s) = process.signal(t), process.signal(s)
        return (sigma_s * alpha - alpha_s * sigma) / (alpha**2 + sigma**2)

    def _start(
        self, value_at: ValueAt, first: Data, t: Scalar, t_next: Scalar, guidance: Any
    ) -> tuple[Data, Any]:
        """The mean value of a first step that begins with `first`."""
        middle = (t + t_next) / 2
        second, guidance = value_at(first, middle, guidance)
        third, guidance = value_at(second, middle, guidance)
        fourth, guidance = value_at(third, t_next, guidance)
        return (first + 2 * second + 2 * third + fourth) / 6, guidance


@dataclasses.dataclass(frozen=True)
class Plms(Pndm):
    """PLMS: PNDM with a first step of two calls, the pseudo improved Euler method; released with Stable Diffusion."""

    starting: ClassVar[int] = 1
    extra: ClassVar[int] = 1

    def _start(
        self, value_at: ValueAt, first: Data, t: Scalar, t_next: Scalar, guidance: Any
    ) -> tuple[Data, Any]:
        second, guidance = value_at(first, t_next, guidance)
        return (first + second) / 2, guidance
