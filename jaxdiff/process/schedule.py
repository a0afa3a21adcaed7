"""Noise schedules: how the log-SNR falls as time runs from data (t = 0) to noise (t = 1).

The log-SNR ``2 log(alpha / sigma)`` is the coordinate that matters: two schedules differ only in how they
spread time over it (Kingma et al. 2021, "Variational Diffusion Models", section 3.2). Every schedule is
strictly decreasing, and `time` is the exact inverse of `log_snr`, also outside [0, 1] as far as the formula
goes.
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.typing import Array, Float


@runtime_checkable
class Schedule(Protocol):
    """A strictly decreasing function of time, and its inverse. Both work elementwise on any shape."""

    def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]: ...

    def time(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]: ...


@dataclasses.dataclass(frozen=True)
class Linear:
    """The VP SDE: noise is added at a rate beta(t) that grows linearly in time.

    ``alpha^2 = exp(-B)`` with ``B = beta_min t + (beta_max - beta_min) t^2 / 2`` (Song et al. 2021,
    "Score-Based Generative Modeling through SDEs", equation 33). The limit of DDPM's linear betas. The
    log-SNR at t = 0 is infinite.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        require(
            self.beta_min > 0,
            "beta_min",
            self.beta_min,
            "noise must be added from the start",
            "give a number > 0",
        )
        require(
            self.beta_max >= self.beta_min, "beta_max", self.beta_max,
            f"it is below beta_min={self.beta_min}", "give a larger number",
        )  # fmt: skip

    def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        integral = self.beta_min * t + (self.beta_max - self.beta_min) * jnp.square(t) / 2
        return -integral - jnp.log(-jnp.expm1(-integral))

    def time(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        integral = jax.nn.softplus(-log_snr)
        # The root of the quadratic in the form that does not cancel when the integral is small.
        root = jnp.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral)
        return 2 * integral / (self.beta_min + root)


@dataclasses.dataclass(frozen=True)
class Cosine:
    """``log-SNR = -2 log tan(angle)`` with an angle linear in time (Nichol & Dhariwal 2021, equation 17).

    Time is stretched over the angles between the two bounds, so both ends are finite and the inverse is exact
    (Hoogeboom et al. 2023, "simple diffusion", appendix A).
    """

    log_snr_min: float = -15.0
    log_snr_max: float = 15.0

    def __post_init__(self):
        _require_order("log_snr_max", self.log_snr_min, self.log_snr_max)

    def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        first, last, span = self._angles()
        # tan(pi/2 - u) = 1 / tan(u): each half of time measures its angle from the nearer end, where it is
        # small.
        early = -2 * jnp.log(jnp.tan(jnp.where(t < 0.5, first + t * span, 1.0)))
        late = 2 * jnp.log(jnp.tan(jnp.where(t < 0.5, 1.0, last + (1 - t) * span)))
        return jnp.where(t < 0.5, early, late)

    def time(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        first, last, span = self._angles()
        early = (jnp.arctan(jnp.exp(-log_snr / 2)) - first) / span
        late = 1 - (jnp.arctan(jnp.exp(log_snr / 2)) - last) / span
        return jnp.where(early < 0.5, early, late)

    def _angles(self) -> tuple[float, float, float]:
        """The angle of data, the angle of noise counted from pi/2, and what lies between the two."""
        first = math.atan(math.exp(-self.log_snr_max / 2))
        last = math.atan(math.exp(self.log_snr_min / 2))
        return first, last, math.pi / 2 - last - first


@dataclasses.dataclass(frozen=True)
class LogLinear:
    """The log-SNR falls linearly: ``sigma / alpha`` runs geometrically from sigma_min to sigma_max.

    Continues beyond [0, 1], so that any noise level has a time.
    """

    sigma_min: float
    sigma_max: float

    def __post_init__(self):
        require(
            self.sigma_min > 0, "sigma_min", self.sigma_min, "a geometric range starts above 0", "try 0.002"
        )
        _require_order("sigma_max", self.sigma_min, self.sigma_max)

    def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return -2 * (math.log(self.sigma_min) + t * math.log(self.sigma_max / self.sigma_min))

    def time(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return (-log_snr / 2 - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


def _require_order(field: str, low: float, high: float) -> None:
    require(high > low, field, high, f"it is not above the lower bound {low}", "give a larger number")
