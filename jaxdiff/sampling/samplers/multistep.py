"""Multistep methods: polynomials through earlier predictions, integrated over a step.

Let tau run from 0 to 1 on a step. Through the prediction f_0 at its start and others f_j at ``tau = 1 / r_j`` goes the
polynomial

    f_0 + sum_j L_j(tau) (f_j - f_0),    L_j(tau) = r_j tau prod_{i != j} r_j (r_i tau - 1) / (r_i - r_j)

A prediction that is missing, or that lies infinitely far away, at pure noise, has r_j = 0: its L_j is 0, and its
factor in the others is 1. So the first steps of a solver are no special case, but of lower order.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from jaxdiff.process.gaussian import Signal
from jaxdiff.sampling.samplers.exponential import finite, weights
from jaxdiff.typing import Array, Data, Int, Scalar


class Past(NamedTuple):
    """Predictions of earlier steps, the latest first.

    Attributes:
      values: the predictions.
      lengths: lengths of the steps that began with them; infinite where there is none.
    """

    values: tuple[Data, ...]
    lengths: tuple[Scalar, ...]

    def and_now(self, value: Data, length: Scalar) -> "Past":
        """As many predictions as before, with the newest in place of the oldest."""
        count = len(self.values)
        return Past((value, *self.values)[:count], (length, *self.lengths)[:count])

    def limited(self, max_order: Int[Array, ""] | None) -> "Past":
        """Only the predictions that a step of this order uses: one less than its order."""
        lengths = (if_allowed(2 + i, length, max_order) for i, length in enumerate(self.lengths))
        return self._replace(lengths=tuple(lengths))


def empty(x: Data, count: int) -> Past:
    """Room for `count` predictions of the shape of x."""
    return Past((jnp.zeros_like(x),) * count, (jnp.array(jnp.inf, x.dtype),) * count)


def if_allowed(order: int, length: Scalar, max_order: Int[Array, ""] | None) -> Scalar:
    """`length` if a step may have this order, else infinity, as of a missing prediction."""
    return length if max_order is None else jnp.where(order <= max_order, length, jnp.inf)


def reciprocals(length: Scalar, lengths: Sequence[Scalar]) -> list[Scalar]:
    """``r_j`` of the predictions that lie the sum of the first j `lengths` before a step; 0 from pure noise."""
    return [-finite(length) / distance for distance in itertools.accumulate(lengths)]


def integrals(r: Sequence[Scalar], moments: Sequence[Scalar]) -> list[Scalar]:
    """The integrals of all ``L_j``, where that of ``tau^k`` is ``moments[k]``."""
    return [_integral(own, [*r[:j], *r[j + 1 :]], moments) for j, own in enumerate(r)]


def combine(factors: Sequence[Scalar], values: Sequence[Data], value: Data) -> Data:
    """``sum_j factors[j] (values[j] - value)``"""
    total = jnp.zeros_like(value)
    for weight, other in zip(factors, values, strict=True):
        total = total + weight * (other - value)
    return total


def exponential_moments(integrand: str, signal: Signal, h: Scalar, count: int) -> list[Scalar]:
    """``k! w_{k + 1}`` for k below `count`, with the weights of `jaxdiff.sampling.samplers.exponential`."""
    return [math.factorial(k) * value for k, value in enumerate(weights(integrand, signal, h, count))]


def _integral(own: Scalar, others: Sequence[Scalar], moments: Sequence[Scalar]) -> Scalar:
    coefficients = jnp.stack([jnp.zeros_like(own), own])
    for other in others:
        # Two are equal only if both are 0, and then so is this integral.
        factor = own / jnp.where(other == own, 1.0, other - own)
        coefficients = factor * (other * jnp.pad(coefficients, (1, 0)) - jnp.pad(coefficients, (0, 1)))
    return jnp.dot(coefficients, jnp.stack(moments[: len(coefficients)]))
