"""Power-function EMA: averages whose length is a fraction of the training so far, and their post-hoc reconstruction.

Karras et al. 2024, "EDM2", section 3 and appendix C. After t steps, a profile weights the parameters of step tau by
``tau^gamma``. The length of an average is its standard deviation as a fraction of t, the paper's ``sigma_rel``.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdiff.errors import between, expect
from jaxdiff.training.ema import EmaProfile

LONGEST = 12**-0.5
"""The standard deviation of the plain mean of all steps, gamma = 0."""


@dataclasses.dataclass(frozen=True)
class PowerEma(EmaProfile):
    """Power-function averages, one for each of `stds`. Samples are drawn with the first, or with `samples`.

    Attributes:
      stds: standard deviations, as fractions of the steps done. Post-hoc reconstruction needs at least two.
      snapshot_every: interval, in steps, at which all averages are stored; 0 for never. From them
        `snapshots.reconstruct` computes averages of any other length. A few tens in a run are enough.
      samples: the average that samples are drawn with, such as `Ema(0.9999)`; None for the first of `stds`.
    """

    stds: tuple[float, ...] = (0.05, 0.10)
    snapshot_every: int = 0
    samples: EmaProfile | None = None

    def __post_init__(self):
        expect(len(self.stds) > 0, "stds", self.stds, "at least one standard deviation", "try (0.05, 0.1)")
        different = len(set(self.stds)) == len(self.stds)
        expect(different, "stds", self.stds, "different standard deviations", "keep one of the equal ones")
        for std in self.stds:
            check_std("stds", std)
        between(self, "snapshot_every", 0, math.inf)
        single = self.samples is None or (self.samples.count == 1 and self.samples.snapshot_every == 0)
        expected, fix = (
            "a single average without snapshots of its own, or None",
            "use one such as Ema(0.9999)",
        )
        expect(single, "samples", self.samples, expected, fix)

    def extra_emas(self) -> "tuple[PowerEma, ...]":
        return tuple(PowerEma((std,)) for std in (self.stds if self.samples is not None else self.stds[1:]))

    def one_minus_decay(self, step: Any) -> Any:
        """``1 - (1 - 1 / t)^(gamma + 1)`` after t = step + 1 updates: 1 at the first, so initial values vanish."""
        if self.samples is not None:
            return self.samples.one_minus_decay(step)
        power = exponent(self.stds[0]) + 1
        return -jnp.expm1(power * jnp.log1p(-1.0 / (jnp.asarray(step) + 1.0)))


def check_std(field: str, std: float) -> None:
    """Raise a `UserError` unless a power-function profile can have this standard deviation."""
    expect(0 < std < LONGEST, field, std, f"a number in (0, {LONGEST:.4f})", "try 0.05 or 0.1")


def exponent(std: float) -> float:
    """The gamma of a profile with this relative standard deviation (algorithm 2).

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
    """Coefficients of the sum of kept averages that is nearest to the average of length `std` at `step` (algorithm 3).

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

    The integral ends with the shorter profile, hence the power of the longer one.
    """
    longer = np.where(t_a < t_b, gamma_b, gamma_a)
    ratio = np.minimum(t_a, t_b) / np.maximum(t_a, t_b)
    return (gamma_a + 1) * (gamma_b + 1) * ratio**longer / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))
