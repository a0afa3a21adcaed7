"""Time grids: which noise levels a sampler visits.

Each gives `steps` times that fall from noise; the jump from the last of them to clean data is the final step.
"""

import dataclasses

import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.process.gaussian import Process
from jaxdiff.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Equal steps of time from t_max down to 0."""

    t_max: float = 1.0

    def __post_init__(self):
        require(self.t_max > 0, "t_max", self.t_max, "sampling runs down to time 0", "give a time above 0")

    def __call__(self, process: Process, steps: int) -> Float[Array, "steps"]:
        return jnp.linspace(self.t_max, 0.0, steps + 1)[:-1]


@dataclasses.dataclass(frozen=True)
class Karras:
    """Equal steps of ``(sigma / alpha)^(1 / rho)`` from sigma_max down (Karras et al. 2022, equation 5)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        require(
            self.sigma_min > 0, "sigma_min", self.sigma_min, "the grid ends above clean data", "try 0.002"
        )
        require(
            self.sigma_max > self.sigma_min, "sigma_max", self.sigma_max,
            f"it is not above sigma_min={self.sigma_min}", "give a larger number",
        )  # fmt: skip
        require(self.rho > 0, "rho", self.rho, "it is the root that is taken", "try 7.0")

    def __call__(self, process: Process, steps: int) -> Float[Array, "steps"]:
        first, last = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return process.time(-2 * self.rho * jnp.log(jnp.linspace(first, last, steps)))


@dataclasses.dataclass(frozen=True)
class LogSnrUniform:
    """Equal steps of log-SNR, from log_snr_min (noise) to log_snr_max."""

    log_snr_min: float = -10.0
    log_snr_max: float = 10.0

    def __post_init__(self):
        require(
            self.log_snr_max > self.log_snr_min, "log_snr_max", self.log_snr_max,
            f"it is not above log_snr_min={self.log_snr_min}", "give a larger number",
        )  # fmt: skip

    def __call__(self, process: Process, steps: int) -> Float[Array, "steps"]:
        return process.time(jnp.linspace(self.log_snr_min, self.log_snr_max, steps))
