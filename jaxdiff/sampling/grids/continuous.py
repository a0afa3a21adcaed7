"""Time grids: the noise levels that a sampler visits.

A grid gives `steps` times that decrease from noise; the jump from the last of them to clean data is the final step.
Grids of discrete models are in `discrete`, published lists of levels in `align_your_steps`, and grids that return to
noise in `restart`.
"""

import dataclasses
import math

import jax.numpy as jnp

from jaxdiff.errors import UserError, expect, positive
from jaxdiff.process.gaussian import Process
from jaxdiff.sampling.protocols import Grid, TimePath
from jaxdiff.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Equal steps of time from t_max down to 0."""

    t_max: float = 1.0

    def __post_init__(self):
        positive(self, "t_max")

    def __call__(self, process: Process, steps: int) -> Float[Array, "steps"]:
        return jnp.linspace(self.t_max, 0.0, steps + 1)[:-1]


@dataclasses.dataclass(frozen=True)
class UniformBetween:
    """Equal steps of time from t_max to t_min, both of them visited (Song et al. 2021).

    With `VariancePreserving(Linear())` these are the levels of the "VP" column of Karras et al. 2022, table 1.
    """

    t_max: float = 1.0
    t_min: float = 1e-3

    def __post_init__(self):
        positive(self, "t_min")
        _expect_above("t_max", self.t_max, "t_min", self.t_min)

    def __call__(self, process: Process, steps: int) -> Float[Array, "steps"]:
        return jnp.linspace(self.t_max, self.t_min, steps)


@dataclasses.dataclass(frozen=True)
class Karras:
    """Equal steps of ``(sigma / alpha)^(1 / rho)`` from sigma_max down (Karras et al. 2022, equation 5)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        positive(self, "sigma_min", "rho")
        _expect_above("sigma_max", self.sigma_max, "sigma_min", self.sigma_min)

    def __call__(self, process: Process, steps: int) -> Float[Array, "steps"]:
        first, last = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return process.time(-2 * self.rho * jnp.log(jnp.linspace(first, last, steps)))


@dataclasses.dataclass(frozen=True)
class KarrasBetween:
    """The spacing of `Karras` from the first to the last noise level of another grid.

    `use_karras_sigmas` of diffusers.
    """

    grid: Grid
    rho: float = 7.0

    def __post_init__(self):
        positive(self, "rho")

    def __call__(self, process: Process, steps: int) -> Float[Array, "steps"]:
        times = falling(self.grid, process, steps)
        first, last = (jnp.exp(-process.log_snr(t) / (2 * self.rho)) for t in (times[0], times[-1]))
        return process.time(-2 * self.rho * jnp.log(jnp.linspace(first, last, steps)))


@dataclasses.dataclass(frozen=True)
class Exponential:
    """Geometric noise levels ``sigma / alpha``: equal steps of their logarithm, to the power `rho`.

    ``log s_i = log sigma_min + (1 - i / (N - 1))^rho log(sigma_max / sigma_min)``. With rho = 1 it equals
    `LogSnrUniform`, and the "VE" column of Karras et al. 2022, table 1, at levels 0.02 and 100; with another rho the
    "polyexponential" grid of k-diffusion.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 1.0

    def __post_init__(self):
        positive(self, "sigma_min", "rho")
        _expect_above("sigma_max", self.sigma_max, "sigma_min", self.sigma_min)

    def __call__(self, process: Process, steps: int) -> Float[Array, "steps"]:
        ramp = jnp.linspace(1.0, 0.0, steps) ** self.rho
        return process.time(
            -2 * (math.log(self.sigma_min) + ramp * math.log(self.sigma_max / self.sigma_min))
        )


@dataclasses.dataclass(frozen=True)
class LogSnrUniform:
    """Equal steps of log-SNR, from log_snr_min (noise) to log_snr_max."""

    log_snr_min: float = -10.0
    log_snr_max: float = 10.0

    def __post_init__(self):
        _expect_above("log_snr_max", self.log_snr_max, "log_snr_min", self.log_snr_min)

    def __call__(self, process: Process, steps: int) -> Float[Array, "steps"]:
        return process.time(jnp.linspace(self.log_snr_min, self.log_snr_max, steps))


@dataclasses.dataclass(frozen=True)
class Shifted:
    """Another grid with each noise level ``sigma / alpha`` multiplied by `shift` (Esser et al. 2024, equation 23).

    On a rectified flow that is the paper's ``t -> shift t / (1 + (shift - 1) t)``. Pure noise stays pure noise.
    """

    grid: Grid
    shift: float = 3.0

    def __post_init__(self):
        positive(self, "shift")

    def __call__(self, process: Process, steps: int) -> Float[Array, "steps"]:
        times = falling(self.grid, process, steps)
        return process.time(process.log_snr(times) - 2 * math.log(self.shift))


def falling(grid: Grid, process: Process, steps: int) -> Float[Array, "times"]:
    """The times of a grid that another one changes, which must not return to noise itself."""
    times = grid(process, steps)
    if isinstance(times, TimePath):
        raise UserError(
            f"grid={grid!r}: expected a grid that only decreases, got one that returns to noise. "
            "Fix: choose another, such as Uniform"
        )
    return times


def _expect_above(field: str, high: float, low_field: str, low: float) -> None:
    expect(high > low, field, high, f"a number > {low_field}={low}", "give a larger number")
