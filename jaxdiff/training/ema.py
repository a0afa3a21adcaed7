"""The moving average of the parameters, which is what samples are drawn with."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.typing import Params


@dataclasses.dataclass(frozen=True)
class Ema:
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

    def gain(self, step: Any) -> Any:
        """1 - d after the update number `step` (the first is 0), with no cancellation for d close to 1."""
        rest = 1.0 - self.decay
        return jnp.maximum(rest, 9.0 / (10.0 + step)) if self.warmup else jnp.asarray(rest)

    def update(self, ema: Params, params: Params, step: Any) -> Params:
        """The average after the update number `step` gave `params`."""
        gain = self.gain(step)
        return jax.tree.map(lambda e, p: (e + gain * (p - e)).astype(e.dtype), ema, params)
