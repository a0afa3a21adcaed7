"""Time samplers: the distribution of diffusion times in training.

A distribution is given by its quantile function, which maps uniform numbers to times. That makes low-discrepancy
draws, exact tests and plots of any distribution one-liners. Gradients of a learned process pass through its times.
"""

import dataclasses
import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Int

from jaxdiff.errors import between, expect, positive
from jaxdiff.process.gaussian import Process
from jaxdiff.typing import Array, Float, Key, Times


@runtime_checkable
class TimeSampler(Protocol):
    """A distribution of times, as the quantile function from uniform numbers in [0, 1] to times.

    A distribution that adapts to the losses also overrides `init_history`, `choose` and `update_history`.
    """

    def quantile(self, u: Float[Array, "*shape"], process: Process) -> Float[Array, "*shape"]: ...

    @property
    def steps(self) -> int | None:
        """T, if every time is a multiple of 1 / T."""
        return None

    def init_history(self) -> Any:
        """The initial loss history: a tree of arrays."""
        return ()

    def choose(self, history: Any, u: Times) -> tuple[Times, Times]:
        """Uniform numbers, resampled by importance for `quantile`, and weights that keep the loss unbiased."""
        return u, jnp.ones_like(u)

    def update_history(self, history: Any, u: Times, losses: Times) -> Any:
        """The history after a step with these `u` and their losses, before the weights of `choose`."""
        return history


@dataclasses.dataclass(frozen=True)
class Uniform(TimeSampler):
    """Uniform times between t_min and t_max."""

    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self):
        _expect_order("t_max", self.t_min, self.t_max)

    def quantile(self, u: Float[Array, "*shape"], process: Process) -> Float[Array, "*shape"]:
        return self.t_min + (self.t_max - self.t_min) * u


@dataclasses.dataclass(frozen=True)
class UniformSteps(TimeSampler):
    """The times ``1 / T, 2 / T, ..., 1`` of a model with T steps, uniformly (Ho et al. 2020, algorithm 1)."""

    steps: int = 1000

    def __post_init__(self):
        positive(self, "steps")

    def quantile(self, u: Float[Array, "*shape"], process: Process) -> Float[Array, "*shape"]:
        return (jnp.minimum(jnp.floor(self.steps * u), self.steps - 1) + 1) / self.steps


@dataclasses.dataclass(frozen=True)
class UniformLogSnr(TimeSampler):
    """Uniform log-SNR between two bounds, whatever the schedule (Kingma & Gao 2023)."""

    log_snr_min: float = -15.0
    log_snr_max: float = 15.0

    def __post_init__(self):
        _expect_order("log_snr_max", self.log_snr_min, self.log_snr_max)

    def quantile(self, u: Float[Array, "*shape"], process: Process) -> Float[Array, "*shape"]:
        return process.time(self.log_snr_max + (self.log_snr_min - self.log_snr_max) * u)


@dataclasses.dataclass(frozen=True)
class LogUniformSigma(TimeSampler):
    """``log(sigma / alpha)`` uniform between two noise levels (Karras et al. 2022, table 1, the column VE)."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self):
        positive(self, "sigma_min")
        _expect_order("sigma_max", self.sigma_min, self.sigma_max)

    def quantile(self, u: Float[Array, "*shape"], process: Process) -> Float[Array, "*shape"]:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return process.time(-2 * (low + (high - low) * u))


@dataclasses.dataclass(frozen=True)
class LogitNormal(TimeSampler):
    """Logit-normal times: ``logit t ~ N(mean, std^2)``, mostly in the middle (Esser et al. 2024, section 3.1)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        positive(self, "std")

    def quantile(self, u: Float[Array, "*shape"], process: Process) -> Float[Array, "*shape"]:
        return jax.nn.sigmoid(self.mean + self.std * _normal_quantile(u))


@dataclasses.dataclass(frozen=True)
class LogNormalSigma(TimeSampler):
    """Log-normal noise levels: ``log(sigma / alpha) ~ N(mean, std^2)`` (Karras et al. 2022, table 1)."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self):
        positive(self, "std")

    def quantile(self, u: Float[Array, "*shape"], process: Process) -> Float[Array, "*shape"]:
        return process.time(-2 * (self.mean + self.std * _normal_quantile(u)))


class History(NamedTuple):
    """The last losses of each bin, as a ring buffer, and the number of losses so far."""

    losses: Float[Array, "bins history"]
    counts: Int[Array, "bins"]


@dataclasses.dataclass(frozen=True)
class Importance(TimeSampler):
    """Importance sampling: times of `base` in proportion to their losses (Nichol & Dhariwal 2021, equation 18).

    The uniform numbers of `base` fall into equal bins. Once every bin has `history` losses, bin b is chosen with
    probability ``p_b ~ sqrt(mean of its last losses^2)``, mixed with a small uniform part, and weights
    ``1 / (p_b bins)`` leave the expected loss unchanged.

    Attributes:
      base: the distribution that is resampled.
      bins: number of bins; in the paper the steps of the model.
      history: number of last losses that are kept per bin.
      uniform: fraction of the uniform part.
    """

    base: TimeSampler = UniformSteps()
    bins: int = 1000
    history: int = 10
    uniform: float = 0.001

    def __post_init__(self):
        positive(self, "bins", "history")
        between(self, "uniform", 0.0, 1.0, open_low=True)

    def quantile(self, u: Float[Array, "*shape"], process: Process) -> Float[Array, "*shape"]:
        return self.base.quantile(u, process)

    @property
    def steps(self) -> int | None:
        return self.base.steps

    def init_history(self) -> History:
        return History(jnp.zeros((self.bins, self.history)), jnp.zeros((self.bins,), jnp.int32))

    def probabilities(self, history: History) -> Float[Array, "bins"]:
        """The probability of each bin: uniform until all have enough losses."""
        size = jnp.sqrt(jnp.mean(jnp.square(history.losses), axis=1))
        size = jnp.where(jnp.all(history.counts >= self.history), size, 1.0)
        return (1 - self.uniform) * size / jnp.sum(size) + self.uniform / self.bins

    def choose(self, history: History, u: Times) -> tuple[Times, Times]:
        p = self.probabilities(history)
        below = jnp.cumsum(p)
        bin_ = jnp.minimum(jnp.searchsorted(below, u, side="right"), self.bins - 1)
        within = (u - (below - p)[bin_]) / p[bin_]
        # Rounding must not move a number out of the bin whose weight it has.
        edge = self.bins * jnp.finfo(u.dtype).eps
        return (bin_ + jnp.clip(within, edge, 1 - edge)) / self.bins, 1 / (p[bin_] * self.bins)

    def update_history(self, history: History, u: Times, losses: Times) -> History:
        """The history with these losses, in the order of the batch."""
        bin_ = jnp.minimum(jnp.floor(u * self.bins).astype(jnp.int32), self.bins - 1)
        order = jnp.argsort(bin_, stable=True)
        bin_, losses = bin_[order], losses[order]
        new = jnp.zeros_like(history.counts).at[bin_].add(1)
        rank = jnp.arange(len(bin_)) - jnp.searchsorted(bin_, bin_, side="left")
        slot = (history.counts[bin_] + rank) % self.history
        # Of more losses than the buffer holds only the last may write: scattering has no order.
        last = rank >= new[bin_] - self.history
        kept = history.losses.at[jnp.where(last, bin_, self.bins), slot].set(losses, mode="drop")
        return History(kept, history.counts + new)


def uniforms(key: Key[Array, ""], batch_size: int, stratified: bool = True) -> Times:
    """Uniform numbers in [0, 1) for a batch; stratified, they also cover the interval evenly.

    A stratified batch is one random offset plus multiples of 1 / batch_size, wrapped to [0, 1), which lowers
    the variance of the loss (Kingma et al. 2021, appendix I.1). Neighbours in the batch have neighbouring
    times.
    """
    if stratified:
        return jnp.mod(jax.random.uniform(key) + jnp.arange(batch_size) / batch_size, 1.0)
    return jax.random.uniform(key, (batch_size,))


def _normal_quantile(u: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The normal quantile without the outermost 1e-7, because uniform numbers can be exactly 0."""
    tail = 1.2e-7
    return ndtri(jnp.clip(u, tail, 1 - tail))


def _expect_order(field: str, low: float, high: float) -> None:
    expect(high > low, field, high, f"a number > the lower bound {low}", "give a larger number")
