"""Runge-Kutta solvers of the probability flow as one curve, with fixed and with adaptive steps.

The curve is followed in the angle ``phi = arctan(sigma / alpha)``, in ``z = x_t / sqrt(alpha^2 + sigma^2)``, where its
slope is the velocity of Salimans & Ho 2022 (their appendix D) and every process looks the same:

    z = cos(phi) x_0 + sin(phi) noise,    dz / dphi = cos(phi) noise - sin(phi) x_0

Both ends of time are regular there, pure noise too, and data of unit variance stay of unit variance, so that one
tolerance means the same at all noise levels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.errors import UserError, expect, positive
from jaxdiff.process.gaussian import Process
from jaxdiff.process.per_example import mean_per_example
from jaxdiff.sampling.base import FixedCalls
from jaxdiff.sampling.protocols import Denoise, SamplerState
from jaxdiff.typing import Array, Bool, Data, Keys, Scalar

Slope = Callable[[Scalar, Data], Data]
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
class RungeKutta4(FixedCalls):
    """The classical Runge-Kutta method with fixed steps: fourth order, four calls per step."""

    calls_per_step: ClassVar[int] = 4

    def step(
        self, denoise: Denoise, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        def slope(phi: Scalar, z: Data, guidance: Any) -> tuple[Data, Any]:
            return _velocity(denoise, process, phi, z, _time(process, phi), guidance)

        phi, z = _angle(process, t), state.x / _norm(process, t)
        h = _angle(process, t_next) - phi
        v_1, guidance = _velocity(denoise, process, phi, z, t, state.guidance)
        v_2, guidance = slope(phi + h / 2, z + h / 2 * v_1, guidance)
        v_3, guidance = slope(phi + h / 2, z + h / 2 * v_2, guidance)
        v_4, guidance = slope(phi + h, z + h * v_3, guidance)
        x = _norm(process, t_next) * (z + h / 6 * (v_1 + 2 * v_2 + 2 * v_3 + v_4))
        return SamplerState(x, guidance=guidance)


class Walk(NamedTuple):
    """The state of an adaptive solver within a step of the grid; `h` is the length of the step to try next."""

    phi: Scalar
    z: Data
    velocity: Data
    h: Scalar
    tries: Array
    rejected: Bool[Array, ""]


@dataclasses.dataclass(frozen=True)
class Rk45:
    """RK45: adaptive steps of fifth order (Dormand & Prince 1980), as many as the tolerance requires.

    A step of the grid is a range that the solver covers in steps of its own: a grid of two times leaves the choice to
    the tolerance alone. Each try takes six calls, since an accepted one ends with the slope with which the next begins.

    The denoiser has one time for the whole batch, so the examples share their steps. A step is accepted when each
    example is within the tolerance, so the influence of its neighbours is within the tolerance too; but the last
    digits of an example depend on them.

    Guidance with state (momentum) is refused: its predictions are no function of (x, t), so that there is no
    differential equation whose error could be estimated.

    Attributes:
      rtol, atol: allowed error of a step, ``atol + rtol |z|``, as the root mean square over each example. z has unit
        variance, see above.
      max_calls: of the denoiser, for one step of the grid. When they do not suffice the result is NaN, which is
        reported wherever samples are saved or shown; a result that stops short of its end would look like any other.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    max_calls: int = 1000

    def __post_init__(self):
        expect(self.rtol >= 0, "rtol", self.rtol, "a tolerance >= 0", "try 1e-3")
        positive(self, "atol")
        expect(self.max_calls >= 7, "max_calls", self.max_calls, "at least the 7 calls of a step", "try 1000")

    def calls(self, steps: int) -> int:
        return (1 + 6 * self._tries()) * steps

    def init(self, x: Data) -> SamplerState:
        return SamplerState(x, history=jnp.zeros((), x.dtype))

    def step(
        self, denoise: Denoise, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        _refuse_state(state.guidance)

        def slope(phi: Scalar, z: Data) -> Data:
            return _velocity(denoise, process, phi, z, _time(process, phi), state.guidance)[0]

        end = _angle(process, t_next)
        phi, z = _angle(process, t), state.x / _norm(process, t)
        velocity, _ = _velocity(denoise, process, phi, z, t, state.guidance)
        h = jnp.where(state.history > 0, state.history, self._first(z, velocity))
        walk = Walk(phi, z, velocity, h, jnp.zeros((), jnp.int32), jnp.array(False))
        walk = jax.lax.while_loop(
            lambda walk: (walk.phi > end) & (walk.tries < self._tries()),
            lambda walk: self.attempt(slope, end, walk),
            walk,
        )
        x = jnp.where(walk.phi > end, jnp.nan, _norm(process, t_next) * walk.z)
        return SamplerState(x, history=walk.h, guidance=state.guidance)

    def _tries(self) -> int:
        return (self.max_calls - 1) // 6

    def _first(self, z: Data, velocity: Data) -> Scalar:
        """A careful first step (Hairer, Norsett & Wanner 1993, section II.4)."""
        allowed = self.atol + self.rtol * jnp.abs(z)
        size, speed = _worst(z / allowed), _worst(velocity / allowed)
        return 0.01 * size / jnp.maximum(speed, 1e-6 * size + 1e-30)

    def attempt(self, slope: Slope, end: Scalar, walk: Walk) -> Walk:
        """The state after one attempted step, which is accepted if its error is within the tolerance."""
        last = walk.h >= walk.phi - end
        h = jnp.where(last, walk.phi - end, walk.h)
        z, velocities = walk.z, [walk.velocity]
        for row in STAGES:
            z = walk.z - h * _sum(row, velocities)
            velocities.append(slope(walk.phi - h * sum(row), z))
        allowed = self.atol + self.rtol * jnp.maximum(jnp.abs(walk.z), jnp.abs(z))
        error = _worst(h * _sum(ERROR, velocities) / allowed)
        # Not "error <= 1", which would try again and again where the denoiser returns NaN.
        rejected = error > 1
        most = jnp.where(walk.rejected | rejected, 1.0, GROW)
        factor = jnp.clip(SAFETY * jnp.maximum(error, 1e-10) ** -0.2, SHRINK, most)
        accepted = Walk(
            jnp.where(last, end, walk.phi - h), z, velocities[-1], h * factor, walk.tries + 1, rejected
        )
        again = walk._replace(h=h * factor, tries=walk.tries + 1, rejected=rejected)
        return jax.tree.map(lambda new, old: jnp.where(rejected, old, new), accepted, again)


def _refuse_state(guidance: Any) -> None:
    if jax.tree.leaves(guidance):
        raise UserError(
            "sampling.guidance=momentum: expected guidance without state for adaptive steps, got one that keeps state "
            "from call to call. Fix: choose another sampler, or guidance without momentum"
        )


def _velocity(
    denoise: Denoise, process: Process, phi: Scalar, z: Data, t: Scalar, guidance: Any
) -> tuple[Data, Any]:
    (x_0, noise, _), guidance = denoise(_norm(process, t) * z, t, guidance)
    return jnp.cos(phi) * noise - jnp.sin(phi) * x_0, guidance


def _time(process: Process, phi: Scalar) -> Scalar:
    return process.time(-2 * jnp.log(jnp.tan(phi)))


def _angle(process: Process, t: Scalar) -> Scalar:
    alpha, sigma = process.signal(t)
    return jnp.arctan2(sigma, alpha)


def _norm(process: Process, t: Scalar) -> Scalar:
    return jnp.hypot(*process.signal(t))


def _sum(row: tuple[float, ...], velocities: list[Data]) -> Data:
    total = jnp.zeros_like(velocities[0])
    for weight, velocity in zip(row, velocities, strict=True):
        total = total + weight * velocity
    return total


def _worst(values: Data) -> Scalar:
    """The largest root mean square of an example."""
    return jnp.max(jnp.sqrt(mean_per_example(jnp.square(values))))
