"""Parameters stored in bfloat16: arithmetic in float32, and stochastic rounding of what it gives.

To the nearest bfloat16, which has 8 significant bits, an update of less than a 512th of a parameter rounds to nothing,
however often it comes. Stochastic rounding goes up or down with the probabilities whose mean is the exact value, so
that no update is lost on average (Gupta et al. 2015, "Deep Learning with Limited Numerical Precision", section 3.2).
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.trees import HALF
from jaxdiff.typing import Array, BFloat16, Float32, Key, Params


def wide(dtype: Any) -> Any:
    """The type of arithmetic with arrays of this type: float32 for half precision."""
    return jnp.dtype(jnp.float32) if jnp.dtype(dtype).name in HALF else jnp.dtype(dtype)


def widened(tree: Params) -> Params:
    """The tree with arrays of half precision as float32; others stay."""
    return jax.tree.map(lambda leaf: leaf.astype(wide(leaf.dtype)), tree)


def rounded(tree: Params, like: Params, key: Key[Array, ""]) -> Params:
    """The arrays of a tree in the types of another one: bfloat16 by stochastic rounding, each with a key of its own."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    types = [leaf.dtype for leaf in jax.tree.leaves(like)]
    found = [_as_type(*each) for each in zip(leaves, types, keys[: len(leaves)], strict=True)]
    return jax.tree.unflatten(structure, found)


def stochastic(x: Float32[Array, "*shape"], key: Key[Array, ""]) -> BFloat16[Array, "*shape"]:
    """Stochastic rounding: one of the two bfloat16 next to each number, whose mean over keys is the number.

    A bfloat16 is the upper half of a float32. Random bits are added to the lower half, and what then remains of it is
    cut off. Infinities and NaN stay.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    drawn = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    cut = (bits + drawn) & jnp.uint32(0xFFFF0000)
    either = jax.lax.bitcast_convert_type(cut, jnp.float32)
    return jnp.where(jnp.isfinite(x), either, x).astype(jnp.bfloat16)


def _as_type(x: Any, dtype: Any, key: Key[Array, ""]) -> Any:
    return stochastic(x.astype(jnp.float32), key) if dtype == jnp.bfloat16 else x.astype(dtype)
