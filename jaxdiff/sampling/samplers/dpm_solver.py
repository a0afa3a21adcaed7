"""The multistep solvers of the DPM-Solver family: one call per step, by remembering earlier ones."""

import dataclasses

import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.loop import DenoiseFn, SamplerState, noise_like
from jaxdiff.sampling.samplers.exponential import finite, length, moved, require_integrand, weights
from jaxdiff.typing import Images, Keys, Scalar


@dataclasses.dataclass(frozen=True)
class DpmSolver1:
    """The first-order step. Without noise it is `Ddim`, whatever the integrand.

    Attributes:
      eta: how much noise is added on the way. 0 solves the probability flow, 1 the reverse SDE (Lu et al. 2022,
        "DPM-Solver++", section 5), and between or above them a mixture.
      integrand: what is interpolated, "x_0" as in DPM-Solver++ or "noise" as in DPM-Solver.
    """

    eta: float = 0.0
    integrand: str = "x_0"

    def __post_init__(self):
        require(self.eta >= 0, "eta", self.eta, "it is an amount of noise", "give a number from 0 up")
        require_integrand(self.integrand)

    def calls(self, steps: int) -> int:
        return steps

    def init(self, x: Images) -> SamplerState:
        return SamplerState(x)

    def step(
        self, denoise: DenoiseFn, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        return SamplerState(self._first_order(denoise(state.x, t), process, t, t_next, keys))

    def _first_order(
        self, prediction: Prediction, process: Process, t: Scalar, t_next: Scalar, keys: Keys
    ) -> Images:
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
        return alpha * x_0 + sigma * (kept * noise + jnp.sqrt(fresh) * noise_like(keys, x_0))

    def _weights(self, process: Process, t_next: Scalar, h: Scalar) -> list[Scalar]:
        """The weights of a step of length h; with noise, the drift is 1 + eta times as strong."""
        signal, drift = process.signal(t_next), 1 + self.eta
        if self.integrand == "x_0":
            return weights(self.integrand, signal, drift * h, 3)
        return [drift * weight for weight in weights(self.integrand, signal, h, 3)]


@dataclasses.dataclass(frozen=True)
class DpmSolver2M(DpmSolver1):
    """Second order: a line through this prediction and the last. DPM-Solver++(2M) (Lu et al. 2022, algorithm 2).

    With ``eta=1`` it is SDE-DPM-Solver++(2M). The first step, and the one after a step from pure noise (alpha = 0),
    are of first order, which keeps the order of the whole.

    Attributes:
      rule: "midpoint" takes the line's value at the middle of the step, "heun" its exact integral.
    """

    rule: str = "midpoint"

    def __post_init__(self):
        super().__post_init__()
        require(
            self.rule in ("midpoint", "heun"), "rule", self.rule, "no such rule", "give 'midpoint' or 'heun'"
        )

    def init(self, x: Images) -> SamplerState:
        return SamplerState(x, history=(jnp.zeros_like(x), jnp.array(jnp.inf, x.dtype)))

    def step(
        self, denoise: DenoiseFn, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        previous, previous_h = state.history
        prediction = denoise(state.x, t)
        value, h = getattr(prediction, self.integrand), length(process, t, t_next)
        # A last prediction from infinitely far away tells no slope.
        slope = finite(h) / previous_h * (value - previous)
        first, second, _ = self._weights(process, t_next, finite(h))
        x = self._first_order(prediction, process, t, t_next, keys)
        x = x + (first / 2 if self.rule == "midpoint" else second) * slope
        return SamplerState(x, history=(value, h))


@dataclasses.dataclass(frozen=True)
class DpmSolver3M(DpmSolver1):
    """Third order: a parabola through this prediction and the last two (Lu et al. 2022, "DPM-Solver++", appendix).

    The first step is of first order and would leave the whole at second. The second step therefore begins by mending
    it, with the slope that is then known, at no further call (as the corrector of Zhao et al. 2023, "UniPC").

    Attributes:
      compat: the step of diffusers and k-diffusion, without this and with half the last term. Their
        ``phi_3 D_2`` takes a second divided difference for a second derivative, which is twice as large; it is of
        second order.
    """

    compat: bool = False

    def init(self, x: Images) -> SamplerState:
        nothing, far = jnp.zeros_like(x), jnp.array(jnp.inf, x.dtype)
        return SamplerState(x, history=(nothing, nothing, far, far))

    def step(
        self, denoise: DenoiseFn, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        last, before, last_h, before_h = state.history
        prediction = denoise(state.x, t)
        value, h = getattr(prediction, self.integrand), length(process, t, t_next)
        if not self.compat:
            unmended = jnp.isinf(before_h)
            mend = jnp.where(unmended, self._weights(process, t, finite(last_h))[1], 0.0) * (value - last)
            prediction = moved(prediction, process.signal(t), self.integrand, mend)
        # Divided differences; those that reach infinitely far back are 0.
        near, far = finite(h) / last_h * (value - last), finite(h) / before_h * (last - before)
        share = jnp.where(jnp.isinf(last_h), 0.0, last_h / (last_h + before_h))
        slope = near + share * (near - far)
        bend = finite(h) / (last_h + before_h) * (near - far)
        _, second, third = self._weights(process, t_next, finite(h))
        x = self._first_order(prediction, process, t, t_next, keys)
        x = x + second * slope + (1 if self.compat else 2) * third * bend
        return SamplerState(x, history=(value, last, h, last_h))
