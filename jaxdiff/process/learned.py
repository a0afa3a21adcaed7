"""Learned noise schedule: the monotone network of variational diffusion models."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.errors import expect
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.typing import Array, Float, Scalar


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MonotoneSchedule:
    """``log-SNR = -gamma(t)`` with a strictly increasing network gamma (Kingma et al. 2021, appendix H).

    ``g(t) = slope t + sum_k height_k sigmoid(steepness_k t + offset_k)``, all of them positive but the offsets; gamma
    is g rescaled to run from gamma_0 to gamma_1. A tree of arrays, and a pure function of them.

    Attributes:
      gamma_0, gamma_1: the negative log-SNR at t = 0 and at t = 1.
      slope: of the linear term.
      steepness, offset, height: parameters of the sigmoids.
    """

    gamma_0: Scalar
    gamma_1: Scalar
    slope: Scalar
    steepness: Float[Array, "width"]
    offset: Float[Array, "width"]
    height: Float[Array, "width"]

    def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        first, last = self._raw(jnp.zeros_like(t)), self._raw(jnp.ones_like(t))
        return -self.gamma_0 - (self.gamma_1 - self.gamma_0) * (self._raw(t) - first) / (last - first)

    def time(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return _time(self, log_snr)

    def _raw(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        # A sum of products, since accelerators would compute a matrix product in bfloat16.
        inner = t.reshape(-1, 1) * self.steepness[None] + self.offset[None]
        bent = jnp.sum(self.height[None] * jax.nn.sigmoid(inner), axis=-1)
        return self.slope * t + bent.reshape(t.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnedProcess(VariancePreserving):
    """A variance preserving process that is a tree of arrays: it can be passed to `jax.jit` and differentiated."""

    schedule: MonotoneSchedule


class LearnedVariancePreserving(nn.Module):
    """Module of a variance preserving process with a learned schedule: ``() -> LearnedProcess``.

    It replaces the `Process` of a `Denoiser`. The ends are learned too. Initially the log-SNR is almost linear in time,
    between the two values below.

    Attributes:
      log_snr_min, log_snr_max: the initial log-SNR at t = 1 and at t = 0.
      width: number of sigmoids.
    """

    log_snr_min: float = -5.0
    log_snr_max: float = 13.3
    width: int = 1024

    def __post_init__(self):
        super().__post_init__()
        expect(
            self.log_snr_max > self.log_snr_min,
            "log_snr_max",
            self.log_snr_max,
            f"a number > log_snr_min={self.log_snr_min}",
            "give a larger number",
        )

    @nn.compact
    def __call__(self) -> LearnedProcess:
        def positive(name: str, first: float, shape: tuple[int, ...] = ()) -> Array:
            raw = jnp.log(jnp.expm1(jnp.float32(first)))
            return jax.nn.softplus(self.param(name, nn.initializers.constant(raw), shape))

        gamma_0 = self.param("gamma_0", nn.initializers.constant(-self.log_snr_max), ())
        # Sigmoids of equal height with centres spread over [0, 1] add up to almost a straight line.
        offset = self.param("offset", lambda key: -8 * jax.random.uniform(key, (self.width,)))
        return LearnedProcess(
            MonotoneSchedule(
                gamma_0=gamma_0,
                gamma_1=gamma_0 + positive("range", self.log_snr_max - self.log_snr_min),
                slope=positive("slope", 1.0),
                steepness=positive("steepness", 8.0, (self.width,)),
                offset=offset,
                height=positive("height", 1 / self.width, (self.width,)),
            )
        )


@jax.custom_jvp
def _time(schedule: MonotoneSchedule, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The root of ``schedule.log_snr(t) = log_snr``, by bisection to machine precision."""
    first, last = schedule._raw(jnp.zeros_like(log_snr)), schedule._raw(jnp.ones_like(log_snr))
    fraction = (-log_snr - schedule.gamma_0) / (schedule.gamma_1 - schedule.gamma_0)
    goal = first + fraction * (last - first)
    # The sigmoids add between 0 and the sum of their heights, which bounds the time of any log-SNR.
    low = jnp.where(
        fraction < 0, (goal - jnp.sum(schedule.height)) / schedule.slope, jnp.where(fraction > 1, 1.0, 0.0)
    )
    high = jnp.where(fraction > 1, goal / schedule.slope, jnp.where(fraction < 0, 0.0, 1.0))

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        below = schedule._raw(middle) < goal
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    bits = jnp.finfo(log_snr.dtype).nmant + 8
    low, high = jax.lax.fori_loop(0, bits, halve, (low, high))
    return (low + high) / 2


@_time.defjvp
def _time_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """The derivative of an implicit function: with ``f(p, t) = log-SNR``, ``dt = (d log-SNR - f_p dp) / f_t``."""
    schedule, log_snr = primals
    d_schedule, d_log_snr = tangents
    t = _time(schedule, log_snr)
    _, slope = jax.jvp(schedule.log_snr, (t,), (jnp.ones_like(t),))
    _, moved = jax.jvp(lambda schedule: schedule.log_snr(t), (schedule,), (d_schedule,))
    return t, (d_log_snr - moved) / slope
