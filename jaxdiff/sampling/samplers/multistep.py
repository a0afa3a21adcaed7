"""What the multistep solvers share: polynomials through predictions that are remembered, integrated over a step.

Let tau run from 0 to 1 on a step. Through the prediction f_0 at its start and others f_j at ``tau = 1 / r_j`` goes the
polynomial

    f_0 + sum_j L_j(tau) (f_j - f_0),    L_j(tau) = r_j tau prod_{i != j} r_j (r_i tau - 1) / (r_i - r_j)

A prediction that is not there yet, or that was made infinitely far away, from pure noise, has r_j = 0: its L_j is 0,
and its factor in the others is 1. So the first steps of a solver are no special case, but of lower order.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from jaxdiff.process.gaussian import Signal
from jaxdiff.sampling.samplers.exponential import finite, weights
from jaxdiff.typing import Images, Scalar


class Past(NamedTuple):
    """Predictions of earlier steps, the last one first.

    `lengths` are those of the steps that began with them, infinite where there was none.
    """

    values: tuple[Images, ...]
    lengths: tuple[Scalar, ...]

    def and_now(self, value: Images, length: Scalar) -> "Past":
        """As many as before, with the latest in place of the oldest."""
        count = len(self.values)
        return Past((value, *self.values)[:count], (length, *self.lengths)[:count])


def nothing(x: Images, count: int) -> Past:
    """Room for so many predictions."""
    return Past((jnp.zeros_like(x),) * count, (jnp.array(jnp.inf, x.dtype),) * count)


def reciprocals(length: Scalar, lengths: Sequence[Scalar]) -> list[Scalar]:
    """``r_j`` of the predictions that lie so many lengths before a step of this `length`; 0 from pure noise."""
    return [-finite(length) / distance for distance in itertools.accumulate(lengths)]


def integrals(r: Sequence[Scalar], moments: Sequence[Scalar]) -> list[Scalar]:
    """The integrals of all ``L_j``, where that of ``tau^k`` is ``moments[k]``."""
    return [_integral(own, [*r[:j], *r[j + 1 :]], moments) for j, own in enumerate(r)]


def combine(factors: Sequence[Scalar], values: Sequence[Images], value: Images) -> Images:
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
        # Two are the same only if both are 0, and then so is this integral.
        share = own / jnp.where(other == own, 1.0, other - own)
        coefficients = share * (other * jnp.pad(coefficients, (1, 0)) - jnp.pad(coefficients, (0, 1)))
    return jnp.dot(coefficients, jnp.stack(moments[: len(coefficients)]))
