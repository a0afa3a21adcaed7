"""Solvers of Runge-Kutta type for the probability flow as one curve, with fixed and with adaptive steps.

The curve is followed in the angle ``phi = arctan(sigma / alpha)``, in ``z = x_t / sqrt(alpha^2 + sigma^2)``, where its
slope is the velocity of Salimans & Ho 2022 (their appendix D) and every process looks the same:

    z = cos(phi) x_0 + sin(phi) noise,    dz / dphi = cos(phi) noise - sin(phi) x_0

Both ends of time are regular there, pure noise too, and data of unit variance stay of unit variance, so that one
tolerance means the same at all noise levels.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.process.gaussian import Process
from jaxdiff.sampling.loop import DenoiseFn, SamplerState
from jaxdiff.typing import Array, Bool, Images, Keys, Scalar

Slope = Callable[[Scalar, Images], Images]
"""(phi, z) -> dz / dphi."""

# Dormand & Prince 1980, RK5(4)7M: rows of stages, the last of which is the solution of fifth order, and its
# difference from that of fourth.
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0


@dataclasses.dataclass(frozen=True)
class RungeKutta4:
    """The classical method with fixed steps: fourth order, four calls a step."""

    def calls(self, steps: int) -> int:
        return 4 * steps

    def init(self, x: Images) -> SamplerState:
        return SamplerState(x)

    def step(
        self, denoise: DenoiseFn, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        slope = _slope(denoise, process)
        phi, z = _angle(process, t), state.x / _norm(process, t)
        h = _angle(process, t_next) - phi
        v_1 = _velocity(denoise, process, phi, z, t)
        v_2 = slope(phi + h / 2, z + h / 2 * v_1)
        v_3 = slope(phi + h / 2, z + h / 2 * v_2)
        v_4 = slope(phi + h, z + h * v_3)
        return SamplerState(_norm(process, t_next) * (z + h / 6 * (v_1 + 2 * v_2 + 2 * v_3 + v_4)))


class Walk(NamedTuple):
    """Where an adaptive solver is. `h` is the length of the step that it is about to try."""

    phi: Scalar
    z: Images
    velocity: Images
    h: Scalar
    tries: Array
    rejected: Bool[Array, ""]


@dataclasses.dataclass(frozen=True)
class Rk45:
    """Adaptive steps of fifth order (Dormand & Prince 1980), as many as the tolerance asks for.

    A step of the grid is here a way that is gone in steps of the solver's own: a grid of two times leaves all of it to
    the tolerance. Each try takes six calls, since an accepted one ends with the slope with which the next begins.

    The denoiser has one time for the whole batch, so the images share their steps. A step is accepted when each image
    on its own is within the tolerance, so what an image's neighbours change is within the tolerance too; but the last
    digits of an image depend on them.

    Guidance that remembers from call to call is refused, since calls are made in a loop of the sampler's own.

    Attributes:
      rtol, atol: an error of ``atol + rtol |z|`` is allowed in a step, as the root mean square over each image. z is
        the image scaled to unit variance, see above.
      max_calls: of the denoiser, for one step of the grid. When they do not suffice the images are NaN, which whoever
        saves or shows images reports; a result that stops short of its end would look like any other.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    max_calls: int = 1000

    def __post_init__(self):
        require(self.rtol >= 0, "rtol", self.rtol, "it is a tolerance", "try 1e-3")
        require(self.atol > 0, "atol", self.atol, "it is a tolerance, also where an image is 0", "try 1e-3")
        require(self.max_calls >= 7, "max_calls", self.max_calls, "a step takes seven", "try 1000")

    def calls(self, steps: int) -> int:
        return (1 + 6 * self._tries()) * steps

    def init(self, x: Images) -> SamplerState:
        return SamplerState(x, history=jnp.zeros((), x.dtype))

    def step(
        self, denoise: DenoiseFn, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        slope, end = _slope(denoise, process), _angle(process, t_next)
        phi, z = _angle(process, t), state.x / _norm(process, t)
        velocity = _velocity(denoise, process, phi, z, t)
        h = jnp.where(state.history > 0, state.history, self._first(z, velocity))
        walk = Walk(phi, z, velocity, h, jnp.zeros((), jnp.int32), jnp.array(False))
        walk = jax.lax.while_loop(
            lambda walk: (walk.phi > end) & (walk.tries < self._tries()),
            lambda walk: self._try(slope, end, walk),
            walk,
        )
        x = jnp.where(walk.phi > end, jnp.nan, _norm(process, t_next) * walk.z)
        return SamplerState(x, history=walk.h)

    def _tries(self) -> int:
        return (self.max_calls - 1) // 6

    def _first(self, z: Images, velocity: Images) -> Scalar:
        """A careful first step (Hairer, Norsett & Wanner 1993, section II.4)."""
        allowed = self.atol + self.rtol * jnp.abs(z)
        size, speed = _worst(z / allowed), _worst(velocity / allowed)
        return 0.01 * size / jnp.maximum(speed, 1e-6 * size + 1e-30)

    def _try(self, slope: Slope, end: Scalar, walk: Walk) -> Walk:
        last = walk.h >= walk.phi - end
        h = jnp.where(last, walk.phi - end, walk.h)
        z, velocities = walk.z, [walk.velocity]
        for row in STAGES:
            z = walk.z - h * _sum(row, velocities)
            velocities.append(slope(walk.phi - h * sum(row), z))
        allowed = self.atol + self.rtol * jnp.maximum(jnp.abs(walk.z), jnp.abs(z))
        error = _worst(h * _sum(ERROR, velocities) / allowed)
        # Not "error <= 1", which would try again and again where the denoiser says NaN.
        rejected = error > 1
        most = jnp.where(walk.rejected | rejected, 1.0, GROW)
        factor = jnp.clip(SAFETY * jnp.maximum(error, 1e-10) ** -0.2, SHRINK, most)
        accepted = Walk(
            jnp.where(last, end, walk.phi - h), z, velocities[-1], h * factor, walk.tries + 1, rejected
        )
        again = walk._replace(h=h * factor, tries=walk.tries + 1, rejected=rejected)
        return jax.tree.map(lambda new, old: jnp.where(rejected, old, new), accepted, again)


def _slope(denoise: DenoiseFn, process: Process) -> Slope:
    def slope(phi: Scalar, z: Images) -> Images:
        return _velocity(denoise, process, phi, z, process.time(-2 * jnp.log(jnp.tan(phi))))

    return slope


def _velocity(denoise: DenoiseFn, process: Process, phi: Scalar, z: Images, t: Scalar) -> Images:
    x_0, noise, _ = denoise(_norm(process, t) * z, t)
    return jnp.cos(phi) * noise - jnp.sin(phi) * x_0


def _angle(process: Process, t: Scalar) -> Scalar:
    alpha, sigma = process.signal(t)
    return jnp.arctan2(sigma, alpha)


def _norm(process: Process, t: Scalar) -> Scalar:
    return jnp.hypot(*process.signal(t))


def _sum(row: tuple[float, ...], velocities: list[Images]) -> Images:
    total = jnp.zeros_like(velocities[0])
    for weight, velocity in zip(row, velocities, strict=True):
        total = total + weight * velocity
    return total


def _worst(values: Images) -> Scalar:
    """The largest root mean square of an image."""
    return jnp.max(jnp.sqrt(jnp.mean(jnp.square(values), axis=(1, 2, 3))))
