"""The single-step solvers of the DPM-Solver family: several calls per step, and nothing remembered."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.process.gaussian import Process, Signal
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.loop import DenoiseFn, SamplerState, noise_like
from jaxdiff.sampling.samplers.exponential import finite, length, node, renew, require_share, weights
from jaxdiff.typing import Images, Keys, Scalar


@dataclasses.dataclass(frozen=True)
class DpmSolver2:
    """DPM-Solver-2: second order in the noise (Lu et al. 2022, "DPM-Solver", algorithm 4).

    With r = 1/2 it is the midpoint rule at the geometric mean of the two noise levels, k-diffusion's `dpm_2`, and with
    eta its `dpm_2_ancestral`.

    Attributes:
      r: where in the step the second call is, as a share of its length in log-SNR.
      eta: the share of the noise that is drawn anew at the end of a step.
    """

    r: float = 0.5
    eta: float = 0.0
    integrand: ClassVar[str] = "noise"

    def __post_init__(self):
        require(0 < self.r <= 1, "r", self.r, "the second call is within the step", "try 0.5")
        require_share("eta", self.eta)

    def calls(self, steps: int) -> int:
        return 2 * steps

    def init(self, x: Images) -> SamplerState:
        return SamplerState(x)

    def step(
        self, denoise: DenoiseFn, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        prediction = denoise(state.x, t)
        x_0, noise, _ = prediction
        signal, h, fresh = renew(process, t, t_next, self.eta)
        s = node(process, t, t_next, h, self.r)
        alpha_s, sigma_s = process.signal(s)
        seen = denoise(alpha_s * x_0 + sigma_s * noise, s)
        x = self._end(prediction, seen, signal, h)
        return SamplerState(x + fresh * noise_like(keys, x) if self.eta > 0 else x)

    def _end(self, prediction: Prediction, seen: Prediction, signal: Signal, h: Scalar) -> Images:
        """Where a step of length h comes to that begins with `prediction` and has `seen` this on its way."""
        (first,) = weights(self.integrand, signal, h, 1)
        change = getattr(seen, self.integrand) - getattr(prediction, self.integrand)
        return signal.alpha * prediction.x_0 + signal.sigma * prediction.noise + first / (2 * self.r) * change


@dataclasses.dataclass(frozen=True)
class DpmSolver2S(DpmSolver2):
    """DPM-Solver++(2S): the same in the predicted image (Lu et al. 2022, "DPM-Solver++", algorithm 1).

    With eta it is k-diffusion's `dpmpp_2s_ancestral`.
    """

    integrand: ClassVar[str] = "x_0"


@dataclasses.dataclass(frozen=True)
class DpmSolverSde(DpmSolver2S):
    """DPM-Solver++(2S) with the fresh noise on its way too, as k-diffusion's `dpmpp_sde`.

    Both draws of a step see one path of the noise; were they independent, the variance would converge in first order
    only. k-diffusion has the path in a Brownian tree over sigma, which correlates them a little differently.
    """

    eta: float = 1.0

    def step(
        self, denoise: DenoiseFn, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        prediction = denoise(state.x, t)
        s = node(process, t, t_next, finite(length(process, t, t_next)), self.r)
        halfway, end = renew(process, t, s, self.eta), renew(process, t, t_next, self.eta)
        x = halfway.signal.alpha * prediction.x_0 + halfway.signal.sigma * prediction.noise
        if self.eta == 0:
            return SamplerState(self._end(prediction, denoise(x, s), end.signal, end.h))
        early, late = jax.vmap(jax.random.split, out_axes=1)(keys)
        drawn = noise_like(early, x)
        x = self._end(prediction, denoise(x + halfway.fresh * drawn, s), end.signal, end.h)
        # What the bridge from x_t to x_0 still has at t_next of what was drawn at s.
        shared = correlation(process, t, s, t_next)
        drawn = shared * drawn + jnp.sqrt(1 - shared**2) * noise_like(late, x)
        return SamplerState(x + end.fresh * drawn)


@dataclasses.dataclass(frozen=True)
class DpmSolver3:
    """DPM-Solver-3: third order in the noise (Lu et al. 2022, "DPM-Solver", algorithm 5).

    Attributes:
      r: where the second call is. The third is at 2/3 of the step, which third order asks for.
    """

    r: float = 1 / 3

    def __post_init__(self):
        require(0 < self.r <= 1, "r", self.r, "the second call is within the step", "try 1/3")

    def calls(self, steps: int) -> int:
        return 3 * steps

    def init(self, x: Images) -> SamplerState:
        return SamplerState(x)

    def step(
        self, denoise: DenoiseFn, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        x_0, noise, _ = denoise(state.x, t)
        r_2, h = 2 / 3, finite(length(process, t, t_next))
        times = node(process, t, t_next, h, self.r), node(process, t, t_next, h, r_2)
        first, second = (process.signal(s) for s in times)

        change = denoise(first.alpha * x_0 + first.sigma * noise, times[0]).noise - noise
        _, w = weights("noise", second, r_2 * h, 2)
        x_s = second.alpha * x_0 + second.sigma * noise + r_2 / self.r * w * change

        change = denoise(x_s, times[1]).noise - noise
        signal = process.signal(t_next)
        _, w = weights("noise", signal, h, 2)
        return SamplerState(signal.alpha * x_0 + signal.sigma * noise + w / r_2 * change)


def correlation(process: Process, t: Scalar, s: Scalar, t_next: Scalar) -> Scalar:
    """Of what one step from t draws at s and at t_next: the root of ``(SNR_s - SNR_t) / (SNR_next - SNR_t)``."""
    log_snr, log_snr_s, log_snr_next = (process.log_snr(time) for time in (t, s, t_next))
    ratio = jnp.expm1(log_snr - log_snr_s) / jnp.expm1(log_snr - log_snr_next)
    return jnp.sqrt(jnp.minimum(jnp.exp(log_snr_s - log_snr_next) * ratio, 1.0))
