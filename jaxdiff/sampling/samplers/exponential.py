"""Exponential integrators in the half-log-SNR ``lambda = log(alpha / sigma)``, shared by several solvers.

Over a step of length h the flow is solved exactly but for one integral, of the predicted x_0 or of the predicted noise
(Lu et al. 2022, "DPM-Solver++", equation 8; "DPM-Solver", equation 3.4). With a polynomial
``d_0 + d_1 (tau / h) + d_2 (tau / h)^2`` for the integrand, and the pair predicted at its start, a step is

    x_next = alpha_next x_0 + sigma_next noise + w_2 d_1 + 2 w_3 d_2

with the `weights` w. From pure noise h is infinite; there it counts as 0, which leaves the first-order step.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp

from jaxdiff.process.gaussian import Process, Signal
from jaxdiff.process.prediction import Prediction
from jaxdiff.typing import Array, Data, Float, Scalar

INTEGRANDS = ("x_0", "noise")
TERMS = 18  # of the series, for float64 at |z| = 1


class Renewal(NamedTuple):
    """A step in which a fraction of the noise is drawn anew.

    Attributes:
      signal: alpha and sigma before the draw.
      h: length of the step to there.
      fresh: standard deviation of the noise that is drawn.
    """

    signal: Signal
    h: Scalar
    fresh: Scalar


def length(process: Process, t: Scalar, t_next: Scalar) -> Scalar:
    """The length h of a step in lambda; infinite from pure noise."""
    return (process.log_snr(t_next) - process.log_snr(t)) / 2


def finite(h: Scalar) -> Scalar:
    """h, or 0 where it is infinite."""
    return jnp.where(jnp.isinf(h), 0.0, h)


def node(process: Process, t: Scalar, t_next: Scalar, h: Scalar, r: float) -> Scalar:
    """The time at the fraction r of the length h; t_next from pure noise, where no time lies in between."""
    log_snr = process.log_snr(t)
    return process.time(jnp.where(jnp.isinf(log_snr), process.log_snr(t_next), log_snr + 2 * r * h))


def renew(process: Process, t: Scalar, t_next: Scalar, eta: float) -> Renewal:
    """A step that ends below t_next and rises to it by noise of variance ``eta^2 sigma_next^2 (1 - SNR_t / SNR_next)``.

    With eta = 1 this is the variance of the posterior (Song et al. 2021, "DDIM", equation 16).
    """
    h = length(process, t, t_next)
    alpha, sigma = process.signal(t_next)
    # Each of the two fractions in the form that keeps its digits where it is small.
    kept, fresh = 1 - eta**2 + eta**2 * jnp.exp(-2 * h), -(eta**2) * jnp.expm1(-2 * h)
    down = finite(h - jnp.log(kept) / 2)
    return Renewal(Signal(alpha, sigma * jnp.sqrt(kept)), down, sigma * jnp.sqrt(fresh))


def weights(integrand: str, signal: Signal, h: Scalar, count: int) -> list[Scalar]:
    """``w_k`` of a step that ends at `signal`, k from 1 to `count`: ``-alpha psi_k(-h)``, or ``-sigma psi_k(h)``."""
    gain, z = (signal.alpha, -h) if integrand == "x_0" else (signal.sigma, h)
    return [-gain * value for value in psi(z, count)]


def moved(prediction: Prediction, signal: Signal, integrand: str, by: Data) -> Prediction:
    """The pair of x_t moved by `by`, with the integrand unchanged."""
    alpha, sigma = signal
    if integrand == "x_0":
        return prediction._replace(noise=prediction.noise + by / sigma)
    return prediction._replace(x_0=prediction.x_0 + by / jnp.where(alpha == 0, 1.0, alpha))


def psi(z: Float[Array, "*shape"], count: int) -> list[Float[Array, "*shape"]]:
    """``psi_k(z) = z phi_k(z)`` for k from 1 to `count` (Hochbruck & Ostermann 2010).

    It is ``exp(z)`` less its first k terms, over ``z^(k - 1)``.
    The fractions cancel for small z, so there it is the series. Finite at ``z = -inf``.
    """
    small = jnp.abs(z) < 1
    near, far = jnp.where(small, z, 0.0), jnp.where(small, 1.0, z)
    found = [jnp.expm1(z)]
    for k in range(1, count):
        found.append(jnp.where(small, _series(near, k + 1), found[-1] / far - 1 / math.factorial(k)))
    return found


def _series(z: Float[Array, "..."], k: int) -> Float[Array, "..."]:
    total = jnp.zeros_like(z)
    for n in range(TERMS, 0, -1):
        total = z * (total + 1 / math.factorial(n + k - 1))
    return total
