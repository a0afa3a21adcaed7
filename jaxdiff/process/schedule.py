"""Noise schedules: the log-SNR as a function of time, from data (t = 0) to noise (t = 1).

The log-SNR ``2 log(alpha / sigma)`` determines the noise level of every process: two schedules differ only in
how they spread time over it (Kingma et al. 2021, "Variational Diffusion Models", section 3.2). Every schedule is
strictly decreasing, and `time` is the exact inverse of `log_snr`, also outside [0, 1] as far as the formula
goes. Schedules of discrete models are in `jaxdiff.process.table`.
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdiff.errors import expect, positive
from jaxdiff.typing import Array, Float, Scalar


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
        _expect_rates(self.beta_min, self.beta_max)

    def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return _log_snr(self.beta_min * t + (self.beta_max - self.beta_min) * jnp.square(t) / 2)

    def time(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        integral = jax.nn.softplus(-log_snr)
        # The root of the quadratic in the form that does not cancel when the integral is small.
        root = jnp.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral)
        return 2 * integral / (self.beta_min + root)


@dataclasses.dataclass(frozen=True)
class ScaledLinear:
    """Noise is added at a rate beta(t) whose square root grows linearly in time (Rombach et al. 2022).

    The limit of Stable Diffusion's betas; the defaults are 1000 times the first and the last of them. The log-SNR at
    t = 0 is infinite.
    """

    beta_min: float = 0.85
    beta_max: float = 12.0

    def __post_init__(self):
        _expect_rates(self.beta_min, self.beta_max)

    def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        first, growth = self._root()
        return _log_snr(t * (first**2 + first * growth * t + jnp.square(growth * t) / 3))

    def time(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        first, growth = self._root()
        integral = jax.nn.softplus(-log_snr)
        # root^3 - first^3 = 3 growth integral, solved for t = (root - first) / growth without a difference.
        root = jnp.cbrt(first**3 + 3 * growth * integral)
        return 3 * integral / (jnp.square(root) + root * first + first**2)

    def _root(self) -> tuple[float, float]:
        """``sqrt(beta)`` at t = 0, and its growth until t = 1."""
        return math.sqrt(self.beta_min), math.sqrt(self.beta_max) - math.sqrt(self.beta_min)


class _Bounded(Protocol):
    """A curve of the log-SNR, cut off at two bounds; time is linear in the curve's parameter between them.

    Both ends of time are finite, and the inverse is exact (Hoogeboom et al. 2023, "simple diffusion",
    appendix A). The curve is given from both ends, because a small distance from noise would be lost to rounding in a
    large one from data.
    """

    log_snr_min: float
    log_snr_max: float

    def __post_init__(self):
        _expect_order("log_snr_max", self.log_snr_min, self.log_snr_max)

    def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        first, last, span = self._ends(t.dtype)
        is_early = t < 0.5
        early = self._at(first + jnp.where(is_early, t, 0.5) * span)
        late = self._before_noise(last + (1 - jnp.where(is_early, 0.5, t)) * span)
        return jnp.where(is_early, early, late)

    def time(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        first, last, span = self._ends(log_snr.dtype)
        early = (self._position(log_snr) - first) / span
        late = 1 - (self._distance_to_noise(log_snr) - last) / span
        return jnp.where(early < 0.5, early, late)

    def _ends(self, dtype: jnp.dtype) -> tuple[Scalar, Scalar, Scalar]:
        """The lengths cut off at the data and at the noise, and the length between them."""
        first = self._position(jnp.asarray(self.log_snr_max, dtype))
        last = self._distance_to_noise(jnp.asarray(self.log_snr_min, dtype))
        return first, last, self._length() - last - first

    def _length(self) -> float: ...

    def _at(self, position: Float[Array, "*shape"]) -> Float[Array, "*shape"]: ...

    def _before_noise(self, distance: Float[Array, "*shape"]) -> Float[Array, "*shape"]: ...

    def _position(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]: ...

    def _distance_to_noise(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]: ...


@dataclasses.dataclass(frozen=True)
class Cosine(_Bounded):
    """``log-SNR = -2 log tan(angle)`` with an angle linear in time (Nichol & Dhariwal 2021, equation 17).

    Time is stretched over the angles between the two bounds, so both ends are finite.
    """

    log_snr_min: float = -15.0
    log_snr_max: float = 15.0

    def _length(self) -> float:
        return math.pi / 2

    def _at(self, position: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return -2 * jnp.log(jnp.tan(position))

    def _before_noise(self, distance: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return 2 * jnp.log(jnp.tan(distance))

    def _position(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.arctan(jnp.exp(-log_snr / 2))

    def _distance_to_noise(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.arctan(jnp.exp(log_snr / 2))


@dataclasses.dataclass(frozen=True)
class Sigmoid(_Bounded):
    """``alpha^2`` falls along a sigmoid from `start` to `end` with temperature `tau` (Jabri et al. 2022, section 3.3).

    With z linear in time, ``alpha^2 = (v(end) - v(z)) / (v(end) - v(start))`` where ``v(z) = sigmoid(z / tau)``.
    The paper clips alpha^2, which has no inverse; here time is stretched between two bounds.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0
    log_snr_min: float = -15.0
    log_snr_max: float = 15.0

    def __post_init__(self):
        super().__post_init__()
        _expect_order("end", self.start, self.end)
        positive(self, "tau")

    # A difference of sigmoids is sinh((z - z') / 2) / (2 cosh(z / 2) cosh(z' / 2)), so that the log-SNR at a
    # position w = (z - start) / 2 tau is log sinh(length - w) - log sinh w - tilt, which has a closed inverse.

    def _length(self) -> float:
        return (self.end - self.start) / (2 * self.tau)

    def _tilt(self) -> float:
        return math.log(math.cosh(self.end / self.tau / 2) / math.cosh(self.start / self.tau / 2))

    def _at(self, position: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.log(jnp.sinh(self._length() - position) / jnp.sinh(position)) - self._tilt()

    def _before_noise(self, distance: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.log(jnp.sinh(distance) / jnp.sinh(self._length() - distance)) - self._tilt()

    def _position(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self._solve(log_snr + self._tilt())

    def _distance_to_noise(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self._solve(-log_snr - self._tilt())

    def _solve(self, log_ratio: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """w from ``log(sinh(length - w) / sinh w)``."""
        length = self._length()
        return jnp.log1p(2 * math.sinh(length) / (jnp.exp(log_ratio) + math.exp(-length))) / 2


@dataclasses.dataclass(frozen=True)
class Laplace(_Bounded):
    """Uniform times have Laplace-distributed log-SNRs of mean `mu` and scale `b` (Hang et al. 2024, table 1).

    ``log-SNR = mu - b sign(1/2 - t) log(1 - 2 |t - 1/2|)`` is infinite at both ends: time is stretched between
    two bounds, which may be infinite. In float32 the times of ``log-SNR < mu - 16 b`` are 1.
    """

    mu: float = 0.0
    b: float = 0.5
    log_snr_min: float = -15.0
    log_snr_max: float = 15.0

    def __post_init__(self):
        super().__post_init__()
        positive(self, "b")

    def _length(self) -> float:
        return 1.0

    def _at(self, position: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        # One of the two logarithms is 0, depending on the half.
        return self.mu + self.b * (
            jnp.log(2 * jnp.minimum(1 - position, 0.5)) - jnp.log(2 * jnp.minimum(position, 0.5))
        )

    def _before_noise(self, distance: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return 2 * self.mu - self._at(distance)

    def _position(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        above = log_snr > self.mu
        away = jnp.where(above, log_snr - self.mu, self.mu - log_snr)
        tail = jnp.exp(-away / self.b) / 2
        return jnp.where(above, tail, 1 - tail)

    def _distance_to_noise(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self._position(2 * self.mu - log_snr)


@dataclasses.dataclass(frozen=True)
class LogLinear:
    """Linear log-SNR: ``sigma / alpha`` grows geometrically from sigma_min to sigma_max.

    It continues beyond [0, 1], so that any noise level has a time.
    """

    sigma_min: float
    sigma_max: float

    def __post_init__(self):
        positive(self, "sigma_min")
        _expect_order("sigma_max", self.sigma_min, self.sigma_max)

    def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return -2 * (math.log(self.sigma_min) + t * math.log(self.sigma_max / self.sigma_min))

    def time(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return (-log_snr / 2 - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclasses.dataclass(frozen=True)
class Shifted:
    """A schedule with `shift` added to its log-SNR. Larger images need more noise, a negative shift."""

    schedule: Schedule
    shift: float

    @classmethod
    def by_size(cls, schedule: Schedule, size: int, base: int = 64) -> "Shifted":
        """The shift ``2 log(base / size)`` for images of `size` pixels across, of a schedule that suits `base`.

        Averaged down to `base` pixels, the images have the log-SNR of the schedule (Hoogeboom et al. 2023,
        "simple diffusion", section 3.1).
        """
        return cls(schedule, 2 * math.log(base / size))

    def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.schedule.log_snr(t) + self.shift

    def time(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.schedule.time(log_snr - self.shift)


def _log_snr(integral: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The log-SNR where ``alpha^2 = exp(-integral)``; softplus of its negative is the inverse."""
    return -integral - jnp.log(-jnp.expm1(-integral))


def _expect_rates(beta_min: float, beta_max: float) -> None:
    expect(beta_min > 0, "beta_min", beta_min, "a rate > 0", "give a number > 0")
    expect(
        beta_max >= beta_min, "beta_max", beta_max, f"a rate >= beta_min={beta_min}", "give a larger number"
    )


def _expect_order(field: str, low: float, high: float) -> None:
    expect(high > low, field, high, f"a number > the lower bound {low}", "give a larger number")
