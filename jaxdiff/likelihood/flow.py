"""The exact likelihood of a model: the change of density along its probability flow (Song et al. 2021, section 4.3).

The flow carries an image, without randomness, to noise whose density is known. It is followed in coordinates in which
every process looks the same: the log-SNR l as time, and ``z = x_t / sqrt(alpha^2 + sigma^2)``, where with
``a^2 = sigmoid(l)`` and ``b^2 = sigmoid(-l)``

    dz/dl = (a b / 2) (b x_0 - a noise)              log p(z_start) = log p(z_end) + integral of div(dz/dl) dl

Both ends of time are regular there, and data of unit variance hardly move.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import UInt8

from jaxdiff.errors import require
from jaxdiff.process.gaussian import Process
from jaxdiff.sampling.loop import DenoiseFn
from jaxdiff.typing import Array, Float, Images, Keys, Scalar

BIN = 2 / 255  # the distance of two of the 256 levels between -1 and 1

Slope = Callable[[Scalar, Images], tuple[Images, Float[Array, "batch"]]]
"""(log-SNR, z) -> dz/dl and its divergence."""

Probes = Float[Array, "probes #batch height width channels"]


@runtime_checkable
class Divergence(Protocol):
    """How the trace of a Jacobian J is found: ``sum_k v_k . J v_k`` over probes with ``sum_k v_k v_k^T = I``."""

    def vectors(self, keys: Keys, x: Images) -> Probes: ...


@dataclasses.dataclass(frozen=True)
class ExactDivergence:
    """Every unit vector is a probe: exact, at as many reverse passes per call as an image has values."""

    def vectors(self, keys: Keys, x: Images) -> Probes:
        size = math.prod(x.shape[1:])
        return jnp.eye(size, dtype=x.dtype).reshape(size, 1, *x.shape[1:])


@dataclasses.dataclass(frozen=True)
class Hutchinson:
    """Random probes with ``E[v v^T] = I``, the same along the whole flow: unbiased (Grathwohl et al. 2019, "FFJORD").

    Attributes:
      probes: how many for each image, each a reverse pass per call; their mean is taken.
      law: "rademacher" (signs, of less variance) or "normal".
    """

    probes: int = 1
    law: str = "rademacher"

    def __post_init__(self):
        require(self.probes >= 1, "probes", self.probes, "nothing would be averaged",
                "give 1 or more")  # fmt: skip
        require(self.law in ("rademacher", "normal"), "law", self.law, "there is no such law of probes",
                "use 'rademacher' or 'normal'")  # fmt: skip

    def vectors(self, keys: Keys, x: Images) -> Probes:
        def draw(key):
            shape = (self.probes, *x.shape[1:])
            if self.law == "normal":
                return jax.random.normal(key, shape, jnp.float32)
            return jax.random.rademacher(key, shape, jnp.float32)

        drawn = jax.vmap(draw, out_axes=1)(keys)
        return (drawn / math.sqrt(self.probes)).astype(x.dtype)


@runtime_checkable
class Integrator(Protocol):
    """One step of the flow: z at the next log-SNR, and the integral of the divergence on the way."""

    def step(
        self, slope: Slope, log_snr: Scalar, log_snr_next: Scalar, z: Images
    ) -> tuple[Images, Float[Array, "batch"]]: ...


@dataclasses.dataclass(frozen=True)
class Heun:
    """The trapezoidal rule: second order, two calls for each step."""

    def step(
        self, slope: Slope, log_snr: Scalar, log_snr_next: Scalar, z: Images
    ) -> tuple[Images, Float[Array, "batch"]]:
        h = log_snr_next - log_snr
        v_1, div_1 = slope(log_snr, z)
        v_2, div_2 = slope(log_snr_next, z + h * v_1)
        return z + h / 2 * (v_1 + v_2), h / 2 * (div_1 + div_2)


@dataclasses.dataclass(frozen=True)
class RungeKutta4:
    """The classical method: fourth order, four calls for each step."""

    def step(
        self, slope: Slope, log_snr: Scalar, log_snr_next: Scalar, z: Images
    ) -> tuple[Images, Float[Array, "batch"]]:
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
    x: Images,
    keys: Keys,
    divergence: Divergence = Hutchinson(),
    integrator: Integrator = RungeKutta4(),
) -> Float[Array, "batch"]:
    """``log p(x)`` in nats, of the model that samples along its probability flow from noise N(0, sigma^2).

    What has this density is an image with the noise that is left at the last time, ``x_0 + s noise`` with
    ``s = sigma / alpha``. The law at the first time is taken to be noise alone, as samplers do, and not the data's own
    law there. For data of mean m that costs ``m^2 / (2 s^2)`` nats for each value on average (0.0013 at s = 20, m = 1),
    and moves a single image by as much as ``m / s``: let the grid begin high.

    Args:
      denoise: the model; its images must not see each other.
      process: the process.
      times: a sampler's grid, falling from noise, with a finite log-SNR everywhere; followed from its end upwards.
        Equal steps of log-SNR (`grids.LogSnrUniform`) suit, since log-SNR is what the integrator steps in.
      x: images, as clean as the last time says; see `dequantise`.
      keys: one for each image, for random probes.
      divergence, integrator: how the density is followed.
    """
    probes = divergence.vectors(keys, x)

    def slope(log_snr: Scalar, z: Images) -> tuple[Images, Float[Array, "batch"]]:
        t = process.time(log_snr)
        alpha, sigma = process.signal(t)
        norm = jnp.hypot(alpha, sigma)
        a, b = alpha / norm, sigma / norm

        def drift(z: Images) -> Images:
            x_0, noise, _ = denoise(norm * z, t)
            return a * b / 2 * (b * x_0 - a * noise)

        # Reverse mode: a network may have derivatives of its own in that direction only.
        velocity, pull = jax.vjp(drift, z)

        def share(probe: Float[Array, "#batch height width channels"]) -> Float[Array, "batch"]:
            v = jnp.broadcast_to(probe, z.shape)
            return _sum(v * pull(v)[0])

        return velocity, jnp.sum(jax.lax.map(share, probes), axis=0)

    def step(carry: tuple[Images, Array], ends: tuple[Scalar, Scalar]) -> tuple[tuple[Images, Array], None]:
        z, integral = carry
        z, change = integrator.step(slope, *ends, z)
        return (z, integral + change), None

    log_snr = process.log_snr(times[::-1].astype(x.dtype))
    size = math.prod(x.shape[1:])
    log_a = jax.nn.log_sigmoid(log_snr[0]) / 2
    first = (jnp.exp(log_a) * x, jnp.zeros(x.shape[0], x.dtype))
    (z, integral), _ = jax.lax.scan(step, first, (log_snr[:-1], log_snr[1:]))
    log_variance = jax.nn.log_sigmoid(-log_snr[-1])
    log_prior = -_sum(jnp.square(z)) / (2 * jnp.exp(log_variance)) - size / 2 * (
        math.log(2 * math.pi) + log_variance
    )
    return log_prior + integral + size * log_a


def dequantise(images: UInt8[Array, "batch height width channels"], keys: Keys) -> Images:
    """Each level spread evenly over its bin: ``u / 127.5 - 1`` and half a level to each side (Theis et al. 2016).

    So the values fill [-1 - 1/255, 1 + 1/255], and the middle of a bin is what the network was trained on.
    """
    uniform = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], jnp.float32))(keys)
    return (images.astype(jnp.float32) + (uniform - 0.5)) / 127.5 - 1


def bits_per_dim(log_likelihood: Float[Array, "*shape"], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """Bits for each value of an image of this shape, from the log-density in nats of its `dequantise`d form.

    On average over the noise of dequantisation it is at least the bits that the model needs for the levels themselves.
    """
    return -log_likelihood / (math.prod(shape) * math.log(2)) - math.log2(BIN)


def _sum(values: Images) -> Float[Array, "batch"]:
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))
