"""Conditions of Stable Diffusion's variants besides the text: sizes, and images to edit, complete or enlarge."""

import dataclasses
from collections.abc import Mapping

from jaxdiff.conditioning.condition import Condition
from jaxdiff.errors import UserError
from jaxdiff.interop.stable_diffusion_unet import UnetLayout


@dataclasses.dataclass(frozen=True)
class Extra:
    """Conditions besides the text.

    Attributes:
      conditions: by name.
      concatenated: names of the conditions whose vectors are concatenated and mapped, in their order.
    """

    conditions: Mapping[str, Condition]
    concatenated: tuple[str, ...] = ()


def extra_conditions(layout: UnetLayout, pooled: int) -> Extra:
    """The conditions that a U-Net needs besides the text.

    Args:
      layout: the U-Net.
      pooled: length of the text encoder's pooled vector.

    Raises:
      UserError: the U-Net needs a condition that is unknown here.
    """
    if layout.mapped is None and layout.in_channels == layout.network.out_channels:
        return Extra({})
    raise UserError("in_channels=?: expected another model")
