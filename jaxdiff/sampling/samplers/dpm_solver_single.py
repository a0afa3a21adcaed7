"""The single-step solvers of the DPM-Solver family: several calls per step, and no history."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxdiff.errors import between
from jaxdiff.process.gaussian import Process, Signal
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.base import FixedCalls
from jaxdiff.sampling.noise import noise_like
from jaxdiff.sampling.protocols import Denoise, SamplerState
from jaxdiff.sampling.samplers.exponential import finite, length, node, renew, weights
from jaxdiff.typing import Data, Keys, Scalar


@dataclasses.dataclass(frozen=True)
class DpmSolver2(FixedCalls):
    """DPM-Solver-2: second order in the noise (Lu et al. 2022, "DPM-Solver", algorithm 4).

    With r = 1/2 it is the midpoint rule at the geometric mean of the two noise levels, k-diffusion's `dpm_2`, and with
    eta its `dpm_2_ancestral`.

    Attributes:
      r: position of the second call, as a fraction of the step's length in log-SNR.
      eta: fraction of the noise that is drawn anew at the end of a step.
    """

    r: float = 0.5
    eta: float = 0.0
    calls_per_step: ClassVar[int] = 2
    integrand: ClassVar[str] = "noise"

    def __post_init__(self):
        between(self, "r", 0.0, 1.0, open_low=True)
        between(self, "eta", 0.0, 1.0)

    @property
    def draws(self) -> bool:
        return self.eta > 0

    def step(
        self, denoise: Denoise, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        prediction, guidance = denoise(state.x, t, state.guidance)
        signal, h, fresh = renew(process, t, t_next, self.eta)
        s = node(process, t, t_next, h, self.r)
        alpha_s, sigma_s = process.signal(s)
        halfway, guidance = denoise(alpha_s * prediction.x_0 + sigma_s * prediction.noise, s, guidance)
        x = self._end(prediction, halfway, signal, h)
        x = x + fresh * state.fresh(keys) if self.eta > 0 else x
        return SamplerState(x, guidance=guidance)

    def _end(self, prediction: Prediction, halfway: Prediction, signal: Signal, h: Scalar) -> Data:
        """The end of a step of length h, from the predictions at its start and at its second call."""
        (first,) = weights(self.integrand, signal, h, 1)
        change = getattr(halfway, self.integrand) - getattr(prediction, self.integrand)
        return signal.alpha * prediction.x_0 + signal.sigma * prediction.noise + first / (2 * self.r) * change


@dataclasses.dataclass(frozen=True)
class DpmSolver2S(DpmSolver2):
    """DPM-Solver++(2S): the same in the predicted x_0 (Lu et al. 2022, "DPM-Solver++", algorithm 1).

    With eta it is k-diffusion's `dpmpp_2s_ancestral`.
    """

    integrand: ClassVar[str] = "x_0"


@dataclasses.dataclass(frozen=True)
class DpmSolverSde(DpmSolver2S):
    """DPM-Solver++(2S) with fresh noise at the second call too, as k-diffusion's `dpmpp_sde`.

    Both draws of a step see one path of the noise; were they independent, the variance would converge in first order
    only. k-diffusion has the path in a Brownian tree over sigma, which correlates them a little differently.
    """

    eta: float = 1.0

    @property
    def draws(self) -> bool:
        """False: it draws twice in a step, from the keys."""
        return False

    def step(
        self, denoise: Denoise, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        prediction, guidance = denoise(state.x, t, state.guidance)
        s = node(process, t, t_next, finite(length(process, t, t_next)), self.r)
        middle, end = renew(process, t, s, self.eta), renew(process, t, t_next, self.eta)
        x = middle.signal.alpha * prediction.x_0 + middle.signal.sigma * prediction.noise
        if self.eta == 0:
            halfway, guidance = denoise(x, s, guidance)
            return SamplerState(self._end(prediction, halfway, end.signal, end.h), guidance=guidance)
        early, late = jax.vmap(jax.random.split, out_axes=1)(keys)
        drawn = noise_like(early, x)
        halfway, guidance = denoise(x + middle.fresh * drawn, s, guidance)
        x = self._end(prediction, halfway, end.signal, end.h)
        # The part of the noise drawn at s that the bridge from x_t to x_0 still has at t_next.
        shared = correlation(process, t, s, t_next)
        drawn = shared * drawn + jnp.sqrt(1 - shared**2) * noise_like(late, x)
        return SamplerState(x + end.fresh * drawn, guidance=guidance)


@dataclasses.dataclass(frozen=True)
class DpmSolver3(FixedCalls):
    """DPM-Solver-3: third order in the noise (Lu et al. 2022, "DPM-Solver", algorithm 5).

    Attributes:
      r: position of the second call. The third is at 2/3 of the step, which third order requires.
    """

    r: float = 1 / 3
    calls_per_step: ClassVar[int] = 3

    def __post_init__(self):
        between(self, "r", 0.0, 1.0, open_low=True)

    def step(
        self, denoise: Denoise, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        (x_0, noise, _), guidance = denoise(state.x, t, state.guidance)
        r_2, h = 2 / 3, finite(length(process, t, t_next))
        times = node(process, t, t_next, h, self.r), node(process, t, t_next, h, r_2)
        first, second = (process.signal(s) for s in times)

        prediction, guidance = denoise(first.alpha * x_0 + first.sigma * noise, times[0], guidance)
        _, w = weights("noise", second, r_2 * h, 2)
        change = prediction.noise - noise
        x_s = second.alpha * x_0 + second.sigma * noise + r_2 / self.r * w * change

        prediction, guidance = denoise(x_s, times[1], guidance)
        signal = process.signal(t_next)
        _, w = weights("noise", signal, h, 2)
        change = prediction.noise - noise
        return SamplerState(signal.alpha * x_0 + signal.sigma * noise + w / r_2 * change, guidance=guidance)


def correlation(process: Process, t: Scalar, s: Scalar, t_next: Scalar) -> Scalar:
    """Between the noise that a step from t adds until s and until t_next.

    ``sqrt((SNR_s - SNR_t) / (SNR_next - SNR_t))``
    """
    log_snr, log_snr_s, log_snr_next = (process.log_snr(time) for time in (t, s, t_next))
    ratio = jnp.expm1(log_snr - log_snr_s) / jnp.expm1(log_snr - log_snr_next)
    return jnp.sqrt(jnp.minimum(jnp.exp(log_snr_s - log_snr_next) * ratio, 1.0))
