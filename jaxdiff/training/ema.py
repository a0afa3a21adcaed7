"""The moving average of the parameters, which is what samples are drawn with."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.typing import Params


class EmaProfile:
    """An average over the course of training, which starts as the initial parameters.

    Attributes:
      snapshot_every: after how many steps a copy of this average and its `extra_emas` is kept for good; 0 for never.
    """

    snapshot_every: int = 0

    def one_minus_decay(self, step: Any) -> Any:
        """How much of the way to the parameters it moves after the update number `step`; the first is 0."""
        raise NotImplementedError

    def update(self, ema: Params, params: Params, step: Any) -> Params:
        """The average after the update number `step` gave `params`, in the types that it has."""
        gain = self.one_minus_decay(step)
        return jax.tree.map(lambda e, p: (e + gain * (p - e)).astype(e.dtype), ema, params)

    def extra_emas(self) -> "tuple[EmaProfile, ...]":
        """Averages of other lengths that are to be tracked beside this one, for later use."""
        return ()


@dataclasses.dataclass(frozen=True)
class Ema(EmaProfile):
    """An exponential moving average, ``ema <- d ema + (1 - d) params``.

    With `warmup`, ``d = min(decay, (1 + step) / (10 + step))``, so that the initial parameters are soon
    forgotten.
    """

    decay: float = 0.9999
    warmup: bool = True

    def __post_init__(self):
        require(
            0.0 <= self.decay < 1.0, "decay", self.decay, "the average would never move", "choose from [0, 1)"
        )

    def one_minus_decay(self, step: Any) -> Any:
        """1 - d after the update number `step` (the first is 0), with no cancellation for d close to 1."""
        rest = 1.0 - self.decay
        return jnp.maximum(rest, 9.0 / (10.0 + step)) if self.warmup else jnp.asarray(rest)


@dataclasses.dataclass(frozen=True)
class HalfLifeEma(EmaProfile):
    """An exponential moving average that forgets half in `half_life` steps (Karras et al. 2022, "EDM").

    Attributes:
      half_life: in optimizer steps; the paper's half-life in images, over the batch size.
      ramp: the half-life is at most this share of the steps done; None for no such bound. The paper's is 0.05.
    """

    half_life: float
    ramp: float | None = 0.05

    def __post_init__(self):
        require(self.half_life > 0, "half_life", self.half_life, "it is a number of steps", "use > 0")
        fix = "use > 0, as 0.05, or None for no bound"
        require(self.ramp is None or self.ramp > 0, "ramp", self.ramp, "nothing would be averaged", fix)

    def one_minus_decay(self, step: Any) -> Any:
        """1 - d, where ``d = 2^(-1 / half-life)``."""
        ramped = math.inf if self.ramp is None else self.ramp * (step + 1.0)
        return -jnp.expm1(-math.log(2) / jnp.minimum(self.half_life, ramped))
