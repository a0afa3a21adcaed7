"""Probability-flow likelihood: the change of density along a model's flow (Song et al. 2021, section 4.3).

The flow maps data deterministically to noise whose density is known. It is integrated in coordinates in which every
process looks the same: the log-SNR l as time, and ``z = x_t / sqrt(alpha^2 + sigma^2)``, where with
``a^2 = sigmoid(l)`` and ``b^2 = sigmoid(-l)``

    dz/dl = (a b / 2) (b x_0 - a noise)              log p(z_start) = log p(z_end) + integral of div(dz/dl) dl

Both ends of time are regular there, and data of unit variance hardly change.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import UInt8

from jaxdiff.errors import expect, one_of
from jaxdiff.process.gaussian import Process
from jaxdiff.process.per_example import sum_per_example
from jaxdiff.sampling.protocols import DenoiseFn
from jaxdiff.typing import Array, Data, Float, Keys, Scalar

BIN = 2 / 255  # the distance between two of the 256 levels in [-1, 1]

Slope = Callable[[Scalar, Data], tuple[Data, Float[Array, "batch"]]]
"""(log-SNR, z) -> dz/dl and its divergence."""

Probes = Float[Array, "probes #batch *data"]


@runtime_checkable
class Divergence(Protocol):
    """Probes for the trace of a Jacobian J: ``sum_k v_k . J v_k`` with ``sum_k v_k v_k^T = I``."""

    def vectors(self, keys: Keys, x: Data) -> Probes: ...


@dataclasses.dataclass(frozen=True)
class ExactDivergence:
    """Exact trace: every unit vector is a probe. One reverse pass per call for each value of an example."""

    def vectors(self, keys: Keys, x: Data) -> Probes:
        size = math.prod(x.shape[1:])
        return jnp.eye(size, dtype=x.dtype).reshape(size, 1, *x.shape[1:])


@dataclasses.dataclass(frozen=True)
class Hutchinson:
    """Hutchinson's estimator: random probes with ``E[v v^T] = I`` (Grathwohl et al. 2019, "FFJORD").

    They are fixed along the flow, so that the estimate of the log-likelihood is unbiased.

    Attributes:
      probes: number per example, each one reverse pass per call; their mean is taken.
      distribution: "rademacher" (signs, of less variance) or "normal".
    """

    probes: int = 1
    distribution: str = "rademacher"

    def __post_init__(self):
        expect(self.probes >= 1, "probes", self.probes, "a count >= 1", "give 1 or more")
        one_of(self, "distribution", ("rademacher", "normal"))

    def vectors(self, keys: Keys, x: Data) -> Probes:
        def draw(key):
            shape = (self.probes, *x.shape[1:])
            if self.distribution == "normal":
                return jax.random.normal(key, shape, jnp.float32)
            return jax.random.rademacher(key, shape, jnp.float32)

        drawn = jax.vmap(draw, out_axes=1)(keys)
        return (drawn / math.sqrt(self.probes)).astype(x.dtype)


@runtime_checkable
class Integrator(Protocol):
    """One step of the flow: z at the next log-SNR, and the integral of the divergence until there."""

    def step(
        self, slope: Slope, log_snr: Scalar, log_snr_next: Scalar, z: Data
    ) -> tuple[Data, Float[Array, "batch"]]: ...


@dataclasses.dataclass(frozen=True)
class Heun:
    """The trapezoidal rule: second order, two calls per step."""

    def step(
        self, slope: Slope, log_snr: Scalar, log_snr_next: Scalar, z: Data
    ) -> tuple[Data, Float[Array, "batch"]]:
        h = log_snr_next - log_snr
        v_1, div_1 = slope(log_snr, z)
        v_2, div_2 = slope(log_snr_next, z + h * v_1)
        return z + h / 2 * (v_1 + v_2), h / 2 * (div_1 + div_2)


@dataclasses.dataclass(frozen=True)
class RungeKutta4:
    """The classical Runge-Kutta method: fourth order, four calls per step."""

    def step(
        self, slope: Slope, log_snr: Scalar, log_snr_next: Scalar, z: Data
    ) -> tuple[Data, Float[Array, "batch"]]:
        h = log_snr_next - log_snr
        middle = log_snr + h / 2
        v_1, div_1 = slope(log_snr, z)
        v_2, div_2 = slope(middle, z + h / 2 * v_1)
        v_3, div_3 = slope(middle, z + h / 2 * v_2)
        v_4, div_4 = slope(log_snr_next, z + h * v_3)
        z = z + h / 6 * (v_1 + 2 * v_2 + 2 * v_3 + v_4)
        return z, h / 6 * (div_1 + 2 * div_2 + 2 * div_3 + div_4)


def log_likelihood(
    denoise: DenoiseFn,
    process: Process,
    times: Float[Array, "times"],
    x: Data,
    keys: Keys,
    divergence: Divergence = Hutchinson(),
    integrator: Integrator = RungeKutta4(),
) -> Float[Array, "batch"]:
    """``log p(x)`` in nats, of the model that samples along its probability flow from noise N(0, sigma^2).

    This is the density of data with the noise of the last time, ``x_0 + s noise`` with ``s = sigma / alpha``. The
    distribution at the first time is taken to be noise alone, as samplers do, not the diffused data. For data of mean
    m that costs ``m^2 / (2 s^2)`` nats per value on average (0.0013 at s = 20, m = 1), and changes a single example by
    as much as ``m / s``: let the grid begin high.

    Args:
      denoise: the model; the examples of a batch must not influence each other.
      process: its noise process.
      times: a sampler's grid, decreasing from noise, with finite log-SNR everywhere; integrated from its end upwards.
        Equal steps of log-SNR (`LogSnrUniform`) suit, since log-SNR is the integration variable.
      x: data at the noise level of the last time; see `dequantise`.
      keys: one per example, for random probes.
      divergence, integrator: the numerical method.
    """
    probes = divergence.vectors(keys, x)

    def slope(log_snr: Scalar, z: Data) -> tuple[Data, Float[Array, "batch"]]:
        t = process.time(log_snr)
        alpha, sigma = process.signal(t)
        norm = jnp.hypot(alpha, sigma)
        a, b = alpha / norm, sigma / norm

        def drift(z: Data) -> Data:
            x_0, noise, _ = denoise(norm * z, t)
            return a * b / 2 * (b * x_0 - a * noise)

        # Reverse mode: networks may define custom derivatives in that direction only.
        velocity, pull = jax.vjp(drift, z)

        def term(probe: Float[Array, "#batch ..."]) -> Float[Array, "batch"]:
            v = jnp.broadcast_to(probe, z.shape)
            return sum_per_example(v * pull(v)[0])

        return velocity, jnp.sum(jax.lax.map(term, probes), axis=0)

    def step(carry: tuple[Data, Array], ends: tuple[Scalar, Scalar]) -> tuple[tuple[Data, Array], None]:
        z, integral = carry
        z, change = integrator.step(slope, *ends, z)
        return (z, integral + change), None

    log_snr = process.log_snr(times[::-1].astype(x.dtype))
    size = math.prod(x.shape[1:])
    log_a = jax.nn.log_sigmoid(log_snr[0]) / 2
    first = (jnp.exp(log_a) * x, jnp.zeros(x.shape[0], x.dtype))
    (z, integral), _ = jax.lax.scan(step, first, (log_snr[:-1], log_snr[1:]))
    log_variance = jax.nn.log_sigmoid(-log_snr[-1])
    log_prior = -sum_per_example(jnp.square(z)) / (2 * jnp.exp(log_variance)) - size / 2 * (
        math.log(2 * math.pi) + log_variance
    )
    return log_prior + integral + size * log_a


def dequantise(images: UInt8[Array, "batch *data"], keys: Keys) -> Data:
    """Uniform dequantisation: ``u / 127.5 - 1`` and up to half a level to each side (Theis et al. 2016).

    The values fill [-1 - 1/255, 1 + 1/255], and the middle of a bin is the value in training data.
    """
    uniform = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], jnp.float32))(keys)
    return (images.astype(jnp.float32) + (uniform - 0.5)) / 127.5 - 1


def bits_per_dim(log_likelihood: Float[Array, "*shape"], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """Bits per dimension of examples of this shape, from the log-density in nats of the `dequantise`d data.

    On average over the noise of dequantisation it is an upper bound on the bits of the levels themselves.
    """
    return -log_likelihood / (math.prod(shape) * math.log(2)) - math.log2(BIN)
