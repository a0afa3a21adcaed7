"""Nulls: what a condition shows for the examples in which it is dropped."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.errors import UserError
from jaxdiff.typing import Array, Bool, Float

Null = Literal["learned", "zero", "none", "empty", "value"]
"""The kinds of null.

- "learned": a parameter of its own (Ho & Salimans 2022).
- "zero": zeros, as in EDM.
- "none": there is no null. The condition is always shown, also in the unconditional branch of guidance.
- "empty": the encoding of the empty input, as in Stable Diffusion. Only for conditions that have one, such as a text.
- "value": the embedding of a value, as SDXL's refiner guides away from a low aesthetic score. Only for `Continuous`.
"""

KINDS = ("learned", "zero", "none")
"""The nulls of most conditions."""

INPUTS = ("none", "empty", "value")
"""The nulls that are inputs like any other, and replace no embedding."""


def check(null: str, drop_rate: float, kinds: Sequence[str] = KINDS) -> None:
    """Raise `UserError` unless the condition has this kind of null, and `drop_rate` fits it."""
    if null not in kinds:
        known = ", ".join(kinds)
        where = "" if null not in get_args(Null) else " for this condition"
        raise UserError(
            f"null={null!r}: expected one of {known}{where}, got {null!r}. Fix: choose one of these"
        )
    if not 0 <= drop_rate < 1:
        raise UserError(f"drop_rate={drop_rate}: expected a number in [0, 1), got {drop_rate}. Fix: try 0.1")
    if null == "none" and drop_rate > 0:
        raise UserError(
            f"drop_rate={drop_rate}: expected 0 with null='none', got {drop_rate}. Fix: give 0, or choose a null"
        )


def is_untrained(null: str, drop_rate: float) -> bool:
    """Whether training never showed a null, since its drop rate is 0.

    With "none" there is no null. "empty" and "value" are inputs like any other to the condition.
    """
    return drop_rate == 0 and null not in INPUTS


def replace_dropped(
    module: nn.Module,
    null: Null,
    values: Float[Array, "batch *grid channels"],
    drop: Bool[Array, "batch"],
    init: Callable,
    name: str = "null",
) -> Float[Array, "batch *grid channels"]:
    """`values` with the null in the examples where `drop` is True: one vector for the full grid.

    Nothing of a dropped value remains. With a null of `INPUTS` the values are returned unchanged.

    Args:
      module: owner of the parameter if the null is learned, [1, ..., 1, channels].
      null: the kind.
      init: initialiser of a learned null.
      name: of the parameter.
    """
    if null in INPUTS:
        return values
    shape = (1,) * (values.ndim - 1) + values.shape[-1:]
    vector = module.param(name, init, shape) if null == "learned" else jnp.zeros(shape)
    return jnp.where(drop.reshape(-1, *(1,) * (values.ndim - 1)), vector, values)
