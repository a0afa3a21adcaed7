"""Gaussian diffusion processes: ``x_t = alpha x_0 + sigma noise``, from data at t = 0 to noise at t = 1."""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdiff.process.schedule import LogLinear, Schedule
from jaxdiff.typing import Array, Data, Float


class Signal(NamedTuple):
    """The factors of clean data, `alpha`, and of noise, `sigma`, at some times."""

    alpha: Float[Array, "..."]
    sigma: Float[Array, "..."]


@runtime_checkable
class Process(Protocol):
    """alpha and sigma as functions of time, elementwise on any shape; `time` is the inverse of `log_snr`."""

    def signal(self, t: Float[Array, "*shape"]) -> Signal: ...

    def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]: ...

    def time(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]: ...


@dataclasses.dataclass(frozen=True)
class VariancePreserving:
    """Variance preserving: ``alpha^2 + sigma^2 = 1`` (DDPM, improved DDPM, Imagen); unit variance is kept."""

    schedule: Schedule

    def signal(self, t: Float[Array, "*shape"]) -> Signal:
        log_snr = self.log_snr(t)
        # Two sigmoids: sqrt(1 - alpha^2) would lose every digit of sigma near data.
        return Signal(jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr)))

    def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.schedule.log_snr(t)

    def time(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.schedule.time(log_snr)


@dataclasses.dataclass(frozen=True)
class VarianceExploding:
    """Variance exploding: ``alpha = 1``, growing noise on unscaled data (Song et al. 2021; Karras et al. 2022).

    Sigma is geometric in time. Training times and sampling grids are given as noise levels, so this choice has no
    other effect; levels outside [sigma_min, sigma_max] have times outside [0, 1].
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self):
        self._schedule()

    def signal(self, t: Float[Array, "*shape"]) -> Signal:
        return Signal(jnp.ones_like(t), jnp.exp(-self.log_snr(t) / 2))

    def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self._schedule().log_snr(t)

    def time(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self._schedule().time(log_snr)

    def _schedule(self) -> LogLinear:
        return LogLinear(self.sigma_min, self.sigma_max)


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
    """Rectified flow: ``alpha = 1 - t, sigma = t``, straight from data to noise (Liu et al. 2022; Lipman et al. 2022).

    Both ends are exact: pure data at t = 0 (log-SNR +inf), pure noise at t = 1 (-inf). The "shift" of Stable
    Diffusion 3 changes the times that are visited, not alpha and sigma at a time: see the grid `Shifted`.
    """

    def signal(self, t: Float[Array, "*shape"]) -> Signal:
        return Signal(1 - t, t)

    def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return 2 * (jnp.log1p(-t) - jnp.log(t))

    def time(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jax.nn.sigmoid(-log_snr / 2)


def diffuse(process: Process, x_0: Data, noise: Data, t: Float[Array, "..."]) -> Data:
    """``x_t = alpha x_0 + sigma noise`` at one time for each example, or at one time for all."""
    alpha, sigma = process.signal(t)
    return expand(alpha, x_0) * x_0 + expand(sigma, x_0) * noise


def expand(values: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Append axes of length 1 to per-example values until they broadcast against x."""
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))
