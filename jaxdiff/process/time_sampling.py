"""Laws of training times: which noise levels a network practises, and how often.

A law is given by its quantile function, which maps uniform numbers to times. That makes low-discrepancy
draws, exact tests and plots of any law one-liners.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from jaxdiff.errors import require
from jaxdiff.process.gaussian import Process
from jaxdiff.typing import Array, Float, Key, Times


@runtime_checkable
class TimeLaw(Protocol):
    """A distribution of times, as the quantile function that turns uniform numbers in [0, 1] into times."""

    def quantile(self, u: Float[Array, "*shape"], process: Process) -> Float[Array, "*shape"]: ...


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Every time between t_min and t_max equally often (DDPM)."""

    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self):
        _require_order("t_max", self.t_min, self.t_max)

    def quantile(self, u: Float[Array, "*shape"], process: Process) -> Float[Array, "*shape"]:
        return self.t_min + (self.t_max - self.t_min) * u


@dataclasses.dataclass(frozen=True)
class UniformLogSnr:
    """Every log-SNR between two bounds equally often, whatever the schedule (Kingma & Gao 2023)."""

    log_snr_min: float = -15.0
    log_snr_max: float = 15.0

    def __post_init__(self):
        _require_order("log_snr_max", self.log_snr_min, self.log_snr_max)

    def quantile(self, u: Float[Array, "*shape"], process: Process) -> Float[Array, "*shape"]:
        return process.time(self.log_snr_max + (self.log_snr_min - self.log_snr_max) * u)


@dataclasses.dataclass(frozen=True)
class LogitNormal:
    """``logit t ~ N(mean, std^2)``: mostly the middle of time (Esser et al. 2024, section 3.1)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        _require_std(self.std)

    def quantile(self, u: Float[Array, "*shape"], process: Process) -> Float[Array, "*shape"]:
        return jax.nn.sigmoid(self.mean + self.std * _normal_quantile(u))


@dataclasses.dataclass(frozen=True)
class LogNormalSigma:
    """``log(sigma / alpha) ~ N(mean, std^2)`` (Karras et al. 2022, table 1)."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self):
        _require_std(self.std)

    def quantile(self, u: Float[Array, "*shape"], process: Process) -> Float[Array, "*shape"]:
        return process.time(-2 * (self.mean + self.std * _normal_quantile(u)))


def draw(
    times: TimeLaw, process: Process, key: Key[Array, ""], batch_size: int, stratified: bool = True
) -> Times:
    """Times for a batch. Each has the law; stratified, together they also cover it evenly.

    A stratified batch is one random offset plus multiples of 1 / batch_size, wrapped to [0, 1), which lowers
    the variance of the loss (Kingma et al. 2021, appendix I.1). Neighbours in the batch have neighbouring
    times.
    """
    if stratified:
        u = jnp.mod(jax.random.uniform(key) + jnp.arange(batch_size) / batch_size, 1.0)
    else:
        u = jax.random.uniform(key, (batch_size,))
    return times.quantile(u, process)


def _normal_quantile(u: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The normal quantile, less the outermost 1e-7, because uniform numbers can be exactly 0."""
    tail = 1.2e-7
    return ndtri(jnp.clip(u, tail, 1 - tail))


def _require_order(field: str, low: float, high: float) -> None:
    require(high > low, field, high, f"it is not above the lower bound {low}", "give a larger number")


def _require_std(std: float) -> None:
    require(std > 0, "std", std, "it is a standard deviation", "give a number > 0")
