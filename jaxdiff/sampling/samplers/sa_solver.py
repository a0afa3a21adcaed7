"""SA-Solver, the stochastic Adams method: a predictor and a corrector at one call per step."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from jaxdiff.errors import expect, one_of
from jaxdiff.process.gaussian import Process, Signal
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.base import SingleCall
from jaxdiff.sampling.protocols import SamplerState
from jaxdiff.sampling.samplers.exponential import INTEGRANDS, finite, length, moved
from jaxdiff.sampling.samplers.multistep import (
    Past,
    combine,
    empty,
    exponential_moments,
    integrals,
    reciprocals,
)
from jaxdiff.typing import Data, Keys, Scalar

RULES = ("exact", "bh1", "bh2")


class History(NamedTuple):
    """The history of `SaSolver`.

    Attributes:
      past: earlier predictions.
      added: their contribution to the last step.
      drift: strength of its drift, ``1 + tau^2``.
    """

    past: Past
    added: Data
    drift: Scalar


@dataclasses.dataclass(frozen=True)
class SaSolver(SingleCall):
    """SA-Solver (Xue et al. 2023, "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models").

    A step continues a polynomial through `predictor_order` predictions. The next one begins by correcting it, since
    now there is a prediction at its end: with the polynomial through `corrector_order` of them, the new one included,
    and the noise that was drawn. The end of the last step is not corrected, since the call there gives the result.

    Attributes:
      predictor_order: from 1 to 4.
      corrector_order: from 2 to 4; 0 is no corrector. With p + 1 the global order is one more than that of the
        predictor p, without noise.
      tau: amount of added noise. 0 solves the probability flow, 1 the reverse SDE.
      tau_min, tau_max: the noise levels ``sigma / alpha`` between which steps that add noise begin.
      integrand: the interpolated quantity, "x_0" or "noise".
      rule: how a polynomial through two predictions is integrated. "exact" is exact. The others take half of its rise
        over the step, times B(h): with "bh1" that is ``h (1 + tau^2)``, with "bh2" the exact integral of 1. The
        released code has "bh1" for x_0, for better images in few steps.
    """

    predictor_order: int = 3
    corrector_order: int = 4
    tau: float = 1.0
    tau_min: float = 0.0
    tau_max: float = 1e9
    integrand: str = "x_0"
    rule: str = "exact"

    def __post_init__(self):
        one_of(self, "predictor_order", (1, 2, 3, 4))
        one_of(self, "corrector_order", (0, 2, 3, 4))
        expect(self.tau >= 0, "tau", self.tau, "an amount of noise >= 0", "give a number from 0 up")
        expect(
            self.tau_max > self.tau_min,
            "tau_max",
            self.tau_max,
            f"a number > tau_min={self.tau_min}",
            "raise it",
        )
        one_of(self, "integrand", INTEGRANDS)
        one_of(self, "rule", RULES)

    @property
    def draws(self) -> bool:
        return self.tau > 0

    def init(self, x: Data) -> SamplerState:
        past = empty(x, max(self.predictor_order, self.corrector_order) - 1)
        return SamplerState(x, History(past, jnp.zeros_like(x), jnp.ones((), x.dtype)))

    def update(
        self,
        prediction: Prediction,
        process: Process,
        state: SamplerState,
        t: Scalar,
        t_next: Scalar,
        keys: Keys,
    ) -> SamplerState:
        history = state.history
        value, h = getattr(prediction, self.integrand), length(process, t, t_next)
        if self.corrector_order:
            correction = self._corrected(history, value, process, t) - history.added
            prediction = moved(prediction, process.signal(t), self.integrand, correction)
        past = history.past.limited(state.max_order)
        tau_squared, signal = self._tau_squared(process, t), process.signal(t_next)
        r = reciprocals(h, past.lengths[: self.predictor_order - 1])
        added = self._added(signal, finite(h), 1 + tau_squared, r, past.values[: len(r)], value)
        x = self._first_order(prediction, state, signal, h, tau_squared, keys) + added
        return SamplerState(x, History(past.and_now(value, h), added, 1 + tau_squared))

    def _corrected(self, history: History, value: Data, process: Process, t: Scalar) -> Data:
        """The contribution that the last step should have had, given the prediction `value` at its end."""
        last, *before = history.past.values[: self.corrector_order - 1]
        h, *lengths = history.past.lengths[: self.corrector_order - 1]
        r = [jnp.ones_like(h), *reciprocals(h, lengths)]
        return self._added(process.signal(t), finite(h), history.drift, r, [value, *before], last)

    def _added(
        self,
        signal: Signal,
        h: Scalar,
        drift: Scalar,
        r: Sequence[Scalar],
        values: Sequence[Data],
        value: Data,
    ) -> Data:
        """What the polynomial through `value` and `values` adds to a step of first order that ends at `signal`."""
        count = len(r) + 1
        if self.integrand == "x_0":
            moments = exponential_moments("x_0", signal, drift * h, count)
        else:
            moments = [drift * moment for moment in exponential_moments("noise", signal, h, count)]
        weights = integrals(r, moments)
        if self.rule != "exact" and r:
            half = moments[0] / 2 if self.rule == "bh2" else self._kernel(signal, drift) * h / 2
            alone = r[1] == 0 if len(r) > 1 else True
            weights[0] = jnp.where(alone, half * r[0], weights[0])
        return combine(weights, values, value)

    def _kernel(self, signal: Signal, drift: Scalar) -> Scalar:
        """The weight of the integrand at the end of a step, per unit of h."""
        return drift * (signal.alpha if self.integrand == "x_0" else -signal.sigma)

    def _first_order(
        self,
        prediction: Prediction,
        state: SamplerState,
        signal: Signal,
        h: Scalar,
        tau_squared: Scalar,
        keys: Keys,
    ) -> Data:
        x_0, noise, _ = prediction
        alpha, sigma = signal
        if self.tau == 0:
            return alpha * x_0 + sigma * noise
        if self.integrand == "x_0":
            decay = tau_squared * jnp.where(tau_squared == 0, 0.0, h)
            kept, fresh = jnp.exp(-decay), -jnp.expm1(-2 * decay)
        else:
            kept, fresh = 1 - tau_squared * jnp.expm1(finite(h)), tau_squared * jnp.expm1(2 * finite(h))
        return alpha * x_0 + sigma * (kept * noise + jnp.sqrt(fresh) * state.fresh(keys))

    def _tau_squared(self, process: Process, t: Scalar) -> Scalar:
        level = jnp.exp(-process.log_snr(t) / 2)
        return jnp.where((level >= self.tau_min) & (level <= self.tau_max), self.tau**2, 0.0).astype(t.dtype)
