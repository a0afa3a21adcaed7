"""Moving averages of the parameters. Samples are drawn with the average, not with the latest parameters."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.errors import between, positive
from jaxdiff.typing import Params


class EmaProfile:
    """Base class of averages over the steps of training. They start as the initial parameters.

    Attributes:
      snapshot_every: interval, in steps, at which the average and its `extra_emas` are stored permanently; 0 for never.
    """

    snapshot_every: int = 0

    def one_minus_decay(self, step: Any) -> Any:
        """Weight of the new parameters in the average after update number `step`; the first update is 0."""
        raise NotImplementedError

    def update(self, ema: Params, params: Params, step: Any) -> Params:
        """The average after update number `step`, which gave `params`. The dtypes of the average are kept."""
        gain = self.one_minus_decay(step)
        return jax.tree.map(lambda e, p: (e + gain * (p - e)).astype(e.dtype), ema, params)

    def extra_emas(self) -> "tuple[EmaProfile, ...]":
        """Further averages to track during training, of other lengths. Samples are not drawn with them."""
        return ()

    @property
    def count(self) -> int:
        """Number of averages, the one for samples included."""
        return 1 + len(self.extra_emas())


@dataclasses.dataclass(frozen=True)
class NoEma(EmaProfile):
    """No average, and no memory for it: samples are drawn with the parameters of the last step."""

    def update(self, ema: Params, params: Params, step: Any) -> Params:
        return ema

    @property
    def count(self) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class Ema(EmaProfile):
    """Exponential moving average, ``ema <- d ema + (1 - d) params``.

    Attributes:
      decay: d, in [0, 1).
      warmup: use ``d = min(decay, (1 + step) / (10 + step))``, so that the weight of the initial parameters falls
        quickly.
    """

    decay: float = 0.9999
    warmup: bool = True

    def __post_init__(self):
        between(self, "decay", 0, 1, open_high=True)

    def one_minus_decay(self, step: Any) -> Any:
        """1 - d after update number `step` (the first is 0), without cancellation for d close to 1."""
        rest = 1.0 - self.decay
        return jnp.maximum(rest, 9.0 / (10.0 + step)) if self.warmup else jnp.asarray(rest)


@dataclasses.dataclass(frozen=True)
class HalfLifeEma(EmaProfile):
    """Exponential moving average with a half-life in steps (Karras et al. 2022, "EDM").

    Attributes:
      half_life: steps after which the weight of old parameters has halved: the paper's half-life in images, divided by
        the batch size.
      ramp: upper bound of the half-life, as a fraction of the steps done; None for no bound. The paper's is 0.05.
    """

    half_life: float
    ramp: float | None = 0.05

    def __post_init__(self):
        positive(self, "half_life", "ramp")

    def one_minus_decay(self, step: Any) -> Any:
        """1 - d, where ``d = 2^(-1 / half-life)``."""
        ramped = math.inf if self.ramp is None else self.ramp * (step + 1.0)
        return -jnp.expm1(-math.log(2) / jnp.minimum(self.half_life, ramped))
