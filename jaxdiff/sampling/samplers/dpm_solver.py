"""The multistep solvers of the DPM-Solver family: one call per step, with a history of earlier predictions."""

import dataclasses

import jax.numpy as jnp

from jaxdiff.errors import expect, one_of
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.base import SingleCall
from jaxdiff.sampling.protocols import SamplerState
from jaxdiff.sampling.samplers.exponential import INTEGRANDS, finite, length, moved, weights
from jaxdiff.sampling.samplers.multistep import if_allowed
from jaxdiff.typing import Data, Keys, Scalar

RULES = ("midpoint", "heun")


@dataclasses.dataclass(frozen=True)
class DpmSolver1(SingleCall):
    """DPM-Solver-1: the first-order step. Without noise it is `Ddim`, whatever the integrand.

    Attributes:
      eta: amount of added noise. 0 solves the probability flow, 1 the reverse SDE (Lu et al. 2022, "DPM-Solver++",
        section 5); other values are mixtures.
      integrand: the interpolated quantity, "x_0" as in DPM-Solver++ or "noise" as in DPM-Solver.
    """

    eta: float = 0.0
    integrand: str = "x_0"

    def __post_init__(self):
        expect(self.eta >= 0, "eta", self.eta, "an amount of noise >= 0", "give a number from 0 up")
        one_of(self, "integrand", INTEGRANDS)

    @property
    def draws(self) -> bool:
        return self.eta > 0

    def update(
        self,
        prediction: Prediction,
        process: Process,
        state: SamplerState,
        t: Scalar,
        t_next: Scalar,
        keys: Keys,
    ) -> SamplerState:
        return SamplerState(self._first_order(prediction, process, state, t, t_next, keys))

    def _first_order(
        self,
        prediction: Prediction,
        process: Process,
        state: SamplerState,
        t: Scalar,
        t_next: Scalar,
        keys: Keys,
    ) -> Data:
        x_0, noise, _ = prediction
        alpha, sigma = process.signal(t_next)
        if self.eta == 0:
            return alpha * x_0 + sigma * noise
        h = length(process, t, t_next)
        if self.integrand == "x_0":
            kept, fresh = jnp.exp(-self.eta * h), -jnp.expm1(-2 * self.eta * h)
        else:
            h = finite(h)
            kept, fresh = 1 - self.eta * jnp.expm1(h), self.eta * jnp.expm1(2 * h)
        return alpha * x_0 + sigma * (kept * noise + jnp.sqrt(fresh) * state.fresh(keys))

    def _weights(self, process: Process, t_next: Scalar, h: Scalar) -> list[Scalar]:
        """The weights of a step of length h; with noise, the drift is 1 + eta times as strong."""
        signal, drift = process.signal(t_next), 1 + self.eta
        if self.integrand == "x_0":
            return weights(self.integrand, signal, drift * h, 3)
        return [drift * weight for weight in weights(self.integrand, signal, h, 3)]


@dataclasses.dataclass(frozen=True)
class DpmSolver2M(DpmSolver1):
    """DPM-Solver++(2M): a line through this prediction and the last (Lu et al. 2022, algorithm 2). Second order.

    With ``eta=1`` it is SDE-DPM-Solver++(2M). The first step, and the one after a step from pure noise (alpha = 0),
    are of first order, which preserves the global order.

    Attributes:
      rule: "midpoint" takes the line's value at the middle of the step, "heun" its exact integral.
    """

    rule: str = "midpoint"

    def __post_init__(self):
        super().__post_init__()
        one_of(self, "rule", RULES)

    def init(self, x: Data) -> SamplerState:
        return SamplerState(x, history=(jnp.zeros_like(x), jnp.array(jnp.inf, x.dtype)))

    def update(
        self,
        prediction: Prediction,
        process: Process,
        state: SamplerState,
        t: Scalar,
        t_next: Scalar,
        keys: Keys,
    ) -> SamplerState:
        previous, previous_h = state.history
        previous_h = if_allowed(2, previous_h, state.max_order)
        value, h = getattr(prediction, self.integrand), length(process, t, t_next)
        # A previous prediction that lies infinitely far away gives slope 0.
        slope = finite(h) / previous_h * (value - previous)
        first, second, _ = self._weights(process, t_next, finite(h))
        x = self._first_order(prediction, process, state, t, t_next, keys)
        x = x + (first / 2 if self.rule == "midpoint" else second) * slope
        return SamplerState(x, history=(value, h))


@dataclasses.dataclass(frozen=True)
class DpmSolver3M(DpmSolver1):
    """DPM-Solver++(3M): a parabola through this prediction and the last two (Lu et al. 2022, appendix). Third order.

    The first step is of first order, and its error would reduce the global order to two. The second step therefore
    begins by correcting it with the slope that is known by then, at no further call (as the corrector of Zhao et al.
    2023, "UniPC").

    Attributes:
      compat: the step of diffusers and k-diffusion, without this correction and with half the last term. Their
        ``phi_3 D_2`` takes a second divided difference for a second derivative, which is twice as large; it is of
        second order.
      rule: of steps with one earlier prediction only, as for `DpmSolver2M`. diffusers' default is "midpoint".
    """

    compat: bool = False
    rule: str = "heun"

    def __post_init__(self):
        super().__post_init__()
        one_of(self, "rule", RULES)

    def init(self, x: Data) -> SamplerState:
        nothing, far = jnp.zeros_like(x), jnp.array(jnp.inf, x.dtype)
        return SamplerState(x, history=(nothing, nothing, far, far))

    def update(
        self,
        prediction: Prediction,
        process: Process,
        state: SamplerState,
        t: Scalar,
        t_next: Scalar,
        keys: Keys,
    ) -> SamplerState:
        last, before, last_h, before_h = state.history
        value, h = getattr(prediction, self.integrand), length(process, t, t_next)
        if not self.compat:
            uncorrected = jnp.isinf(before_h)
            change = jnp.where(uncorrected, self._weights(process, t, finite(last_h))[1], 0.0)
            prediction = moved(prediction, process.signal(t), self.integrand, change * (value - last))
        history = (value, last, h, last_h)
        last_h, before_h = (if_allowed(k, x, state.max_order) for k, x in ((2, last_h), (3, before_h)))
        # Divided differences; those that reach infinitely far back are 0.
        near, far = finite(h) / last_h * (value - last), finite(h) / before_h * (last - before)
        fraction = jnp.where(jnp.isinf(last_h), 0.0, last_h / (last_h + before_h))
        slope = near + fraction * (near - far)
        bend = finite(h) / (last_h + before_h) * (near - far)
        first, second, third = self._weights(process, t_next, finite(h))
        if self.rule == "midpoint":
            second = jnp.where(jnp.isinf(before_h), first / 2, second)
        x = self._first_order(prediction, process, state, t, t_next, keys)
        x = x + second * slope + (1 if self.compat else 2) * third * bend
        return SamplerState(x, history=history)
