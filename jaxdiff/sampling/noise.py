"""Random numbers per example: each has a key of its own, so that a sample does not depend on its batch."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.typing import Data, Keys


def noise_like(keys: Keys, x: Data) -> Data:
    """Standard normal noise of the shape of x in float32, each example drawn from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], jnp.float32))(keys)


def fold_in(keys: Keys, number: Any) -> Keys:
    """`jax.random.fold_in` of the same number into every key."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
