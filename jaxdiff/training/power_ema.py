"""Averages whose length is a share of the training so far, and any of them from a few that were kept.

Karras et al. 2024, "EDM2", section 3 and appendix C. When t steps are done, a profile weighs the parameters of step tau
by ``tau^gamma``. Its length is told by its standard deviation as a share of t, the paper's ``sigma_rel``.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdiff.errors import require
from jaxdiff.training.ema import EmaProfile

LONGEST = 12**-0.5
"""The standard deviation of the plain mean of all steps, gamma = 0."""


@dataclasses.dataclass(frozen=True)
class PowerEma(EmaProfile):
    """Power-function averages, one for each of `stds`; samples are drawn with the first.

    Attributes:
      stds: their standard deviations, as shares of the steps done. Post-hoc reconstruction needs two at least.
      snapshot_every: keep all of them every so many steps, from which `snapshots.reconstruct` makes averages of any
        other length; 0 for never. A few tens in a run are enough.
    """

    stds: tuple[float, ...] = (0.05, 0.10)
    snapshot_every: int = 0

    def __post_init__(self):
        require(len(self.stds) > 0, "stds", self.stds, "there is no average", "try (0.05, 0.1)")
        require(
            len(set(self.stds)) == len(self.stds), "stds", self.stds, "two are the same", "keep one of them"
        )
        for std in self.stds:
            require_std("stds", std)
        fix = "use 0 for never, or more"
        require(self.snapshot_every >= 0, "snapshot_every", self.snapshot_every, "it counts steps", fix)

    def extra_emas(self) -> "tuple[PowerEma, ...]":
        return tuple(PowerEma((std,)) for std in self.stds[1:])

    def one_minus_decay(self, step: Any) -> Any:
        """``1 - (1 - 1 / t)^(gamma + 1)`` after t = step + 1 updates: 1 at the first, which forgets the start."""
        power = exponent(self.stds[0]) + 1
        return -jnp.expm1(power * jnp.log1p(-1.0 / (jnp.asarray(step) + 1.0)))


def require_std(field: str, std: float) -> None:
    """Raise `UserError` unless a power-function profile has this standard deviation."""
    why = f"an average over training has a standard deviation between 0 and {LONGEST:.4f} of it"
    require(0 < std < LONGEST, field, std, why, "try 0.05 or 0.1")


def exponent(std: float) -> float:
    """The gamma of a profile of this relative standard deviation (algorithm 2).

    The largest root of ``(gamma + 2)^2 (gamma + 3) std^2 = gamma + 1``.
    """
    inverse = std**-2
    return float(np.max(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real))


def relative_std(gamma: float) -> float:
    """The inverse of `exponent`."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def coefficients(
    steps: Float[np.ndarray, "kept"], stds: Float[np.ndarray, "kept"], step: float | int, std: float
) -> Float[np.ndarray, "kept"]:
    """The sum of kept averages that is nearest to the average of length `std` at `step` (algorithm 3).

    Each kept average is a profile that ends at one of `steps`. The distance is the integral of the squared difference
    of the profiles over time. The coefficients add up to 1.
    """
    gammas, gamma = np.array([exponent(value) for value in stds]), np.array([exponent(std)])
    products = _inner(steps[:, None], gammas[:, None], steps[None], gammas[None])
    wanted = _inner(steps, gammas, np.array([step], np.float64), gamma)
    found = np.linalg.solve(products, wanted)
    return found / np.sum(found)


def _inner(
    t_a: Float[np.ndarray, "..."],
    gamma_a: Float[np.ndarray, "..."],
    t_b: Float[np.ndarray, "..."],
    gamma_b: Float[np.ndarray, "..."],
) -> Float[np.ndarray, "..."]:
    """``integral p_a p_b``, where ``p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1)`` up to t, and 0 after it.

    The power belongs to the profile that ends later: the other one ends the integral.
    """
    longer = np.where(t_a < t_b, gamma_b, gamma_a)
    share = np.minimum(t_a, t_b) / np.maximum(t_a, t_b)
    return (gamma_a + 1) * (gamma_b + 1) * share**longer / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))
