"""What the solvers in the half-log-SNR ``lambda = log(alpha / sigma)`` share: exponential integrators.

Over a step of length h the flow is solved exactly but for one integral, of the predicted image or of the predicted
noise (Lu et al. 2022, "DPM-Solver++", equation 8; "DPM-Solver", equation 3.4). With a polynomial
``d_0 + d_1 (tau / h) + d_2 (tau / h)^2`` for what is integrated, and the pair predicted at its start, a step is

    x_next = alpha_next x_0 + sigma_next noise + w_2 d_1 + 2 w_3 d_2

with the `weights` w. From pure noise h is infinite; there it counts as 0, which leaves the first-order step.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.process.gaussian import Process, Signal
from jaxdiff.process.prediction import Prediction
from jaxdiff.typing import Array, Float, Images, Scalar

INTEGRANDS = ("x_0", "noise")
TERMS = 18  # of the series, for float64 at |z| = 1


class Renewal(NamedTuple):
    """A step in which a share of the noise is drawn anew.

    `signal` is where it comes to before the draw, `h` the length of the way there, `fresh` the standard deviation of
    what is drawn.
    """

    signal: Signal
    h: Scalar
    fresh: Scalar


def length(process: Process, t: Scalar, t_next: Scalar) -> Scalar:
    """The step's h; infinite from pure noise."""
    return (process.log_snr(t_next) - process.log_snr(t)) / 2


def finite(h: Scalar) -> Scalar:
    """h, or 0 where it is infinite."""
    return jnp.where(jnp.isinf(h), 0.0, h)


def node(process: Process, t: Scalar, t_next: Scalar, h: Scalar, r: float) -> Scalar:
    """The time after the share r of the length h; t_next from pure noise, where there is nothing in between."""
    log_snr = process.log_snr(t)
    return process.time(jnp.where(jnp.isinf(log_snr), process.log_snr(t_next), log_snr + 2 * r * h))


def renew(process: Process, t: Scalar, t_next: Scalar, eta: float) -> Renewal:
    """A step that ends lower and comes up to t_next by noise of variance ``eta^2 sigma_next^2 (1 - SNR_t / SNR_next)``.

    With eta = 1 it is that of the posterior (Song et al. 2021, "DDIM", equation 16).
    """
    h = length(process, t, t_next)
    alpha, sigma = process.signal(t_next)
    # Each of the two shares in the form that keeps its digits where it is small.
    kept, fresh = 1 - eta**2 + eta**2 * jnp.exp(-2 * h), -(eta**2) * jnp.expm1(-2 * h)
    down = finite(h - jnp.log(kept) / 2)
    return Renewal(Signal(alpha, sigma * jnp.sqrt(kept)), down, sigma * jnp.sqrt(fresh))


def weights(integrand: str, signal: Signal, h: Scalar, count: int) -> list[Scalar]:
    """``w_k`` of a step that ends at `signal`, k from 1 to `count`: ``-alpha psi_k(-h)``, or ``-sigma psi_k(h)``."""
    gain, z = (signal.alpha, -h) if integrand == "x_0" else (signal.sigma, h)
    return [-gain * value for value in psi(z, count)]


def moved(prediction: Prediction, signal: Signal, integrand: str, by: Images) -> Prediction:
    """The pair of images that are moved `by` so much, with the part that is interpolated left as it is."""
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


def require_integrand(integrand: str) -> None:
    require(
        integrand in INTEGRANDS, "integrand", integrand, "no such part of a prediction", "give 'x_0' or 'noise'"
    )  # fmt: skip


def require_share(field: str, value: float) -> None:
    require(0 <= value <= 1, field, value, "it is a share of the noise", "give a number from 0 to 1")


def _series(z: Float[Array, "..."], k: int) -> Float[Array, "..."]:
    total = jnp.zeros_like(z)
    for n in range(TERMS, 0, -1):
        total = z * (total + 1 / math.factorial(n + k - 1))
    return total
