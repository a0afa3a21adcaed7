"""Discrete schedules: a list of betas, one per step (Ho et al. 2020, equation 2).

Step i of T, counted from 0, is time ``(i + 1) / T``; t = 0 is clean data. A list is given by the parameters of its
family, so that configs stay readable, or value by value.
"""

import dataclasses
import functools
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import expect, one_of
from jaxdiff.typing import Array, Float


@runtime_checkable
class BetaSequence(Protocol):
    """The betas of a discrete model, from data to noise, each between 0 and 1."""

    def array(self) -> Float[np.ndarray, "steps"]: ...


@dataclasses.dataclass(frozen=True)
class LinearBetas:
    """Equal steps from `first` to `last` (Ho et al. 2020, section 4)."""

    first: float = 1e-4
    last: float = 0.02
    steps: int = 1000

    def __post_init__(self):
        _expect_range(self.first, self.last)

    def array(self) -> Float[np.ndarray, "steps"]:
        return np.linspace(self.first, self.last, self.steps)


@dataclasses.dataclass(frozen=True)
class ScaledLinearBetas:
    """Equal steps of the square root (latent diffusion, Rombach et al. 2022; the defaults are Stable Diffusion's)."""

    first: float = 0.00085
    last: float = 0.012
    steps: int = 1000

    def __post_init__(self):
        _expect_range(self.first, self.last)

    def array(self) -> Float[np.ndarray, "steps"]:
        return np.square(np.linspace(np.sqrt(self.first), np.sqrt(self.last), self.steps))


@dataclasses.dataclass(frozen=True)
class CosineBetas:
    """``alpha^2`` proportional to ``cos^2((t + s) / (1 + s) pi / 2)``, no beta above `max_beta`.

    Nichol & Dhariwal 2021, equation 17; `s` keeps the first betas from being too small.
    """

    steps: int = 1000
    s: float = 0.008
    max_beta: float = 0.999

    def __post_init__(self):
        expect(self.s >= 0, "s", self.s, "an offset >= 0", "try 0.008")
        _expect_beta("max_beta", self.max_beta)

    def array(self) -> Float[np.ndarray, "steps"]:
        t = np.arange(self.steps + 1) / self.steps
        alpha_squared = np.square(np.cos((t + self.s) / (1 + self.s) * np.pi / 2))
        return np.minimum(1 - alpha_squared[1:] / alpha_squared[:-1], self.max_beta)


@dataclasses.dataclass(frozen=True)
class SigmoidBetas:
    """From `first` to `last` along a sigmoid between -`span` and `span` (Xu et al. 2022, "GeoDiff")."""

    first: float = 1e-4
    last: float = 0.02
    steps: int = 1000
    span: float = 6.0

    def __post_init__(self):
        _expect_range(self.first, self.last)

    def array(self) -> Float[np.ndarray, "steps"]:
        fraction = 1 / (1 + np.exp(-np.linspace(-self.span, self.span, self.steps)))
        return self.first + (self.last - self.first) * fraction


@dataclasses.dataclass(frozen=True)
class Betas:
    """Any list of betas."""

    values: tuple[float, ...]

    def __post_init__(self):
        for i, value in enumerate(self.values):
            _expect_beta(f"values[{i}]", value)

    def array(self) -> Float[np.ndarray, "steps"]:
        return np.asarray(self.values, np.float64)


@dataclasses.dataclass(frozen=True)
class Table:
    """The schedule of a discrete model: exact at its steps, and strictly falling and invertible between them.

    Between two steps the log-SNR is linear in time, as other libraries interpolate ``log(sigma / alpha)``. Infinite
    ends are excepted: from clean data to the first step ``sigma / alpha`` is linear, and with zero terminal SNR
    ``alpha / sigma`` is, from the last step but one to pure noise. Without it, the last line continues beyond t = 1, so
    that higher noise levels have a time too.

    Attributes:
      betas: the betas of the steps.
      zero_terminal_snr: whether alpha is shifted and scaled so that the last step is pure noise (Lin et al. 2023,
        algorithm 1). Noise prediction does not determine x_0 there: use `V`.
      last_alpha_squared: with `zero_terminal_snr`, ``alpha^2`` of the last step in place of 0. diffusers has 2^-24 for
        solvers that divide by alpha.
      linear: what is linear in time between two steps, "log_snr", or the noise level "sigma / alpha", as in the
        fractional steps of Euler's and Heun's method in diffusers.
      rounded: whether ``alpha^2`` and ``sigma^2`` of the steps are rounded to single precision where the computation is
        in it, as in the tables of published models. It changes the noise levels near clean data and near pure noise,
        to which cosine schedules are sensitive. In double precision nothing is rounded.
    """

    betas: BetaSequence
    zero_terminal_snr: bool = False
    last_alpha_squared: float = 0.0
    linear: str = "log_snr"
    rounded: bool = False

    def __post_init__(self):
        steps = len(self.betas.array())
        expect(steps >= 3, "steps", steps, "at least 3 steps to interpolate between", "give 3 or more")
        one_of(self, "linear", ("log_snr", "sigma / alpha"))
        last = self.last_alpha_squared
        expect(
            last == 0 or self.zero_terminal_snr, "last_alpha_squared", last, "0 without zero_terminal_snr",
            "leave it out, or set zero_terminal_snr",
        )  # fmt: skip
        expect(
            not (self.rounded and self.zero_terminal_snr), "rounded", self.rounded, "False with zero_terminal_snr",
            "choose one of them",
        )  # fmt: skip
        expect(
            bool(last >= 0 and np.all(np.diff(_knots(self)) < 0)), "last_alpha_squared", last,
            "a number from 0 to below that of the last step but one", "try 2**-24",
        )  # fmt: skip

    @property
    def steps(self) -> int:
        return len(_knots(self)) + self._reaches_noise

    def _knots_in(self, dtype: jnp.dtype) -> Float[Array, "knots"]:
        exact = dtype == jnp.float64 or not self.rounded
        return jnp.asarray(_knots(self) if exact else _rounded_knots(self), dtype)

    @property
    def _reaches_noise(self) -> bool:
        return self.zero_terminal_snr and self.last_alpha_squared == 0

    def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        knots = self._knots_in(t.dtype)
        # Knot i is at position i + 1. Late positions are counted from the end, where they are small and keep precision.
        position, left_over = t * self.steps, self.steps * (1 - t)
        left = jnp.clip(position.astype(int), 1, len(knots) - 1)
        fraction = jnp.where(t < 0.5, position - left, (self.steps - left) - left_over)
        fall = knots[left - 1] - knots[left]
        if self.linear == "log_snr":
            inside = knots[left - 1] - fraction * fall
        else:
            inside = knots[left - 1] - 2 * jnp.log1p(jnp.maximum(fraction, 0.0) * jnp.expm1(fall / 2))
        log_snr = jnp.where(position < 1, knots[0] - 2 * jnp.log(jnp.minimum(position, 1.0)), inside)
        if self._reaches_noise:
            near_noise = knots[-1] + 2 * jnp.log(jnp.minimum(left_over, 1.0))
            log_snr = jnp.where(left_over < 1, near_noise, log_snr)
        return log_snr

    def time(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        knots = self._knots_in(log_snr.dtype)
        left = jnp.clip(jnp.searchsorted(-knots, -log_snr), 1, len(knots) - 1)
        depth, fall = knots[left - 1] - log_snr, knots[left - 1] - knots[left]
        if self.linear != "log_snr":
            depth, fall = jnp.expm1(depth / 2), jnp.expm1(fall / 2)
        inside = left + depth / fall
        near_data = jnp.exp((knots[0] - jnp.maximum(log_snr, knots[0])) / 2)
        t = jnp.where(log_snr > knots[0], near_data, inside) / self.steps
        if self._reaches_noise:
            left_over = jnp.exp((jnp.minimum(log_snr, knots[-1]) - knots[-1]) / 2)
            t = jnp.where(log_snr < knots[-1], 1 - left_over / self.steps, t)
        return t


@functools.lru_cache(maxsize=64)
def _knots(table: Table) -> Float[np.ndarray, "knots"]:
    """The log-SNR of every step where it is finite, in double precision."""
    log_alpha_squared = np.cumsum(np.log1p(-table.betas.array()))
    if not table.zero_terminal_snr:
        return log_alpha_squared - np.log(-np.expm1(log_alpha_squared))
    alpha = np.exp(log_alpha_squared / 2)
    alpha = (alpha[:-1] - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    if table.last_alpha_squared > 0:
        alpha = np.append(alpha, np.sqrt(table.last_alpha_squared))
    return 2 * np.log(alpha) - np.log1p(-np.square(alpha))


@functools.lru_cache(maxsize=64)
def _rounded_knots(table: Table) -> Float[np.ndarray, "knots"]:
    """`_knots` of numbers in single precision: betas, their complements, the products of these, and sigma^2."""
    one = np.float32(1)
    kept = (one - table.betas.array().astype(np.float32)).astype(np.float64)
    alpha_squared = np.cumprod(kept).astype(np.float32)  # of PyTorch, whose products are in double precision
    sigma_squared = one - alpha_squared
    return np.log(alpha_squared.astype(np.float64)) - np.log(sigma_squared.astype(np.float64))


def _expect_range(first: float, last: float) -> None:
    _expect_beta("first", first)
    _expect_beta("last", last)


def _expect_beta(field: str, beta: float) -> None:
    expect(0 < beta < 1, field, beta, "a fraction of the variance in (0, 1)", "choose one there")
