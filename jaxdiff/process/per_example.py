"""Reductions over the axes of each example: data of any rank share one leading batch axis."""

import jax.numpy as jnp

from jaxdiff.typing import Array, Float


def data_axes(x: Float[Array, "batch ..."]) -> tuple[int, ...]:
    """All axes but the first."""
    return tuple(range(1, x.ndim))


def mean_per_example(x: Float[Array, "batch ..."]) -> Float[Array, "batch"]:
    """The mean over all values of each example."""
    return jnp.mean(x, axis=data_axes(x))


def sum_per_example(x: Float[Array, "batch ..."]) -> Float[Array, "batch"]:
    """The sum over all values of each example."""
    return jnp.sum(x, axis=data_axes(x))
