"""Transitions between two times: the forward step from s to t > s, and its exact reverse given ``x_0``."""

import jax.numpy as jnp

from jaxdiff.process.gaussian import Process, Signal, expand
from jaxdiff.typing import Array, Data, Float


def forward(process: Process, s: Float[Array, "..."], t: Float[Array, "..."]) -> Signal:
    """``q(x_t | x_s) = N(alpha x_s, sigma^2)`` (Kingma et al. 2021, appendix A.1). In DDPM ``sigma^2`` is beta."""
    alpha_s, _ = process.signal(s)
    alpha_t, sigma_t = process.signal(t)
    return Signal(alpha_t / alpha_s, sigma_t * jnp.sqrt(_lost(process, s, t)))


def posterior_std(process: Process, s: Float[Array, "..."], t: Float[Array, "..."]) -> Float[Array, "..."]:
    """The standard deviation of ``q(x_s | x_t, x_0)`` (Ho et al. 2020, equation 7; for any two times)."""
    return process.signal(s).sigma * jnp.sqrt(_lost(process, s, t))


def posterior_mean(
    process: Process, s: Float[Array, "..."], t: Float[Array, "..."], x_0: Data, noise: Data
) -> Data:
    """The mean of ``q(x_s | x_t, x_0)``, from the pair that makes up ``x_t`` (Ho et al. 2020, equation 7).

    With the pair it needs no ``x_t``: ``alpha_s x_0`` plus the noise, scaled to keep the variance at ``sigma_s^2``.
    """
    alpha_s, sigma_s = process.signal(s)
    kept = sigma_s * jnp.sqrt(1 - _lost(process, s, t))
    return expand(alpha_s, x_0) * x_0 + expand(kept, x_0) * noise


def reverse_log_variance(
    process: Process, s: Float[Array, "..."], t: Float[Array, "..."], fraction: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The log-variance of a reverse step from t to s > 0, between its two bounds (Nichol & Dhariwal 2021, equation 15).

    `fraction` 0 is the posterior's variance, DDPM's smaller choice, and 1 that of the forward step, its larger one.
    """
    low, high = 2 * jnp.log(posterior_std(process, s, t)), 2 * jnp.log(forward(process, s, t).sigma)
    return expand(low, fraction) + fraction * expand(high - low, fraction)


def _lost(process: Process, s: Float[Array, "..."], t: Float[Array, "..."]) -> Float[Array, "..."]:
    """``1 - SNR_t / SNR_s``, exact for small steps too."""
    return -jnp.expm1(process.log_snr(t) - process.log_snr(s))
