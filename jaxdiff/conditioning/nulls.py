"""What a condition shows where it is dropped."""

from collections.abc import Callable
from typing import Literal, get_args

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.typing import Array, Bool, Float

Null = Literal["learned", "zero", "none"]
"""A parameter of its own (Ho & Salimans 2022); zeros, as in EDM; or nothing: the condition is always shown."""


def check(null: str, drop_rate: float) -> None:
    """Raise `UserError` unless there is such a null, and it can be dropped to so often."""
    kinds = get_args(Null)
    require(null in kinds, "null", null, "there is no such null", f"use one of {', '.join(kinds)}")
    require(0 <= drop_rate < 1, "drop_rate", drop_rate, "it is outside [0, 1)", "try 0.1")
    require(null != "none" or drop_rate == 0, "drop_rate", drop_rate, "with null='none' nothing can be dropped",
            "give 0, or a null")  # fmt: skip


def instead(
    module: nn.Module,
    values: Float[Array, "batch *grid channels"],
    drop: Bool[Array, "batch"],
    init: Callable,
) -> Float[Array, "batch *grid channels"]:
    """`values`, and where `drop` is True the null that ``module.null`` names, one vector for the whole grid.

    A learned one is the parameter "null" of the module, [1, ..., 1, channels]. Nothing of a dropped value is left.
    """
    if module.null == "none":
        return values
    shape = (1,) * (values.ndim - 1) + values.shape[-1:]
    null = module.param("null", init, shape) if module.null == "learned" else jnp.zeros(shape)
    return jnp.where(drop.reshape(-1, *(1,) * (values.ndim - 1)), null, values)
