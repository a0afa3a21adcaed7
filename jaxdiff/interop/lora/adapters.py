"""An adapter: what a LoRA file changes in one weight."""

import dataclasses
from typing import Literal

import numpy as np

from jaxdiff.interop.lora.factors import Array, Factors, Shape


@dataclasses.dataclass(frozen=True, eq=False)
class Magnitude:
    """Magnitudes of DoRA (Liu et al. 2024), to which the changed weight is rescaled.

    Attributes:
      values: [out] or [in].
      axis: axis of the weight that they belong to. PEFT and diffusers have one per output ("out"). LyCORIS has one per
        input ("in") or per output. The norm runs over all other axes.
    """

    values: Array
    axis: Literal["out", "in"]

    def rescaled(self, weight: Array) -> Array:
        """The weight with these magnitudes; zeros stay zeros."""
        kept = 0 if self.axis == "out" else 1
        others = tuple(axis for axis in range(weight.ndim) if axis != kept)
        norm = np.sqrt(np.sum(np.square(weight), axis=others, keepdims=True))
        values = np.asarray(self.values, np.float32).reshape(norm.shape)
        return weight * (values / np.where(norm == 0, 1, norm))


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """The change of one weight.

    Attributes:
      factors: the factors as they are stored.
      alpha: the change is alpha/rank times that of the factors.
      shape: shape of the weight.
      magnitude: magnitudes of DoRA, if it is one.
    """

    factors: Factors
    alpha: float
    shape: Shape
    magnitude: Magnitude | None = None

    def change(self) -> Array:
        """The change at scale 1 in float32, before DoRA's magnitudes."""
        rank = self.factors.rank
        factor = 1.0 if rank is None else self.alpha / rank
        return np.float32(factor) * self.factors.change().reshape(self.shape)

    def applied(self, weight: Array, scale: float) -> Array:
        """``weight + scale change``, with DoRA rescaled to its magnitudes; in float32.

        DoRA's scale acts on the change before the rescaling, as in PEFT.
        """
        changed = np.asarray(weight, np.float32) + np.float32(scale) * self.change()
        return changed if self.magnitude is None else self.magnitude.rescaled(changed)


Adapters = dict[str, dict[str, Adapter]]
"""Adapters by component ("unet", "text_encoder", "text_encoder_2") and by the name of the weight in diffusers."""
