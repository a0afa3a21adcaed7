"""Variational bound (ELBO) of a model with T steps, in bits per dimension and step by step.

A model of T steps has the times ``i / T``. The bound on ``-log p(x_0)`` (Ho et al. 2020, "Denoising Diffusion
Probabilistic Models", equation 5) is the sum of T + 1 terms, all in bits per dimension:

    prior    KL(q(x_1 | x_0) || p(x_1))                          at time 1, without the network
    i >= 2   KL(q(x_s | x_t, x_0) || p(x_s | x_t))               t = i / T, s = (i - 1) / T
    i = 1    -log p(x_0 | x_t)                                   the decoder: a discretised normal distribution

The first step ends at clean data, whatever the process is at time 0.
"""

import dataclasses
import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Int

from jaxdiff.errors import expect
from jaxdiff.process import transition
from jaxdiff.process.gaussian import Process, diffuse, expand
from jaxdiff.process.per_example import mean_per_example
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.noise import fold_in, noise_like
from jaxdiff.sampling.protocols import DenoiseFn
from jaxdiff.typing import Array, Data, Float, Keys, Times

HALF_BIN = 1 / 255  # data have 256 levels in [-1, 1]
LEAST_PROBABILITY = 1e-12


@runtime_checkable
class Decoder(Protocol):
    """``log p(x_0 | x_t)`` of each value, in nats: the probability of its level under a normal distribution."""

    def __call__(self, x_0: Data, mean: Data, std: Float[Array, "batch *#data"]) -> Data: ...


@dataclasses.dataclass(frozen=True)
class NormalDecoder:
    """A normal distribution integrated over the level's bin; the outermost are open (Ho et al. 2020, equation 13)."""

    def __call__(self, x_0: Data, mean: Data, std: Float[Array, "batch *#data"]) -> Data:
        # Mirrored so that the bin lies in the lower tail, where log_ndtr keeps full precision.
        away = (x_0 - mean) / std
        upper = -jnp.abs(away) + HALF_BIN / std
        lower = -jnp.abs(away) - HALF_BIN / std
        log_upper = log_ndtr(upper)
        inside = log_upper + jnp.log(-jnp.expm1(log_ndtr(lower) - log_upper))
        lowest, highest = log_ndtr(away + HALF_BIN / std), log_ndtr(HALF_BIN / std - away)
        return _by_level(x_0, lowest, inside, highest)


@dataclasses.dataclass(frozen=True)
class TanhDecoder:
    """The normal decoder with the approximate distribution function of improved and guided diffusion.

    ``Phi(z) = (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2``, and no probability below 1e-12. It reproduces
    their numbers exactly.
    """

    def __call__(self, x_0: Data, mean: Data, std: Float[Array, "batch *#data"]) -> Data:
        def cdf(z: Data) -> Data:
            return (1 + jnp.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2

        above, below = cdf((x_0 - mean + HALF_BIN) / std), cdf((x_0 - mean - HALF_BIN) / std)
        probability = _by_level(x_0, above, above - below, 1 - below)
        return jnp.log(jnp.maximum(probability, LEAST_PROBABILITY))


class Bound(NamedTuple):
    """The variational bound of each example, in bits per dimension.

    Attributes:
      total: the sum of `prior` and `terms`, an upper bound on the bits of the model's likelihood.
      prior: the term of time 1.
      terms: the term of each step, from the decoder (i = 1) to i = T.
      x_0_error, noise_error: mean squared errors of the prediction at each step, in the same order.
    """

    total: Float[Array, "batch"]
    prior: Float[Array, "batch"]
    terms: Float[Array, "batch steps"]
    x_0_error: Float[Array, "batch steps"]
    noise_error: Float[Array, "batch steps"]


def step_bits(
    process: Process,
    steps: int,
    t: Times,
    x_0: Data,
    x_t: Data,
    prediction: Prediction,
    fraction: float = 0.0,
    decoder: Decoder = NormalDecoder(),
) -> Float[Array, "batch"]:
    """One term of the bound in bits per dimension, at each example's time ``t = i / steps``.

    The variance of ``p(x_s | x_t)`` is the prediction's (Nichol & Dhariwal 2021, "Improved Denoising Diffusion
    Probabilistic Models", equation 15), or without one `fraction` between the two bounds. The lower bound is 0 at
    the first step, and is replaced by that of the second step; without a learned variance the first step uses it
    whatever `fraction` is.

    Args:
      process: the noise process.
      steps: T, 2 or more.
      t: multiples of ``1 / steps`` from ``1 / steps`` to 1.
      x_0: clean data, of 256 levels in [-1, 1] (the decoder's term assumes them).
      x_t: noisy data at time t.
      prediction: the denoiser's prediction from `x_t`.
      fraction: 0 the posterior's variance ("small"), 1 the forward step's ("large").
      decoder: the distribution of the levels at the first step.
    """
    expect(
        steps >= 2,
        "steps",
        steps,
        "at least 2, since the first step uses the second's variance",
        "use 2 or more",
    )
    index = jnp.round(t * steps)
    first = index < 1.5
    # At the first step the second one replaces it: its variance is used, its divergence is not.
    s, t = (jnp.maximum(index, 2) - 1) / steps, jnp.maximum(index, 1) / steps
    t_later = jnp.maximum(index, 2) / steps

    low = 2 * jnp.log(transition.posterior_std(process, s, t_later))
    alpha, sigma = process.signal(t)
    added = jnp.where(first, sigma, transition.forward(process, s, t_later).sigma)
    high = 2 * jnp.log(added)
    if prediction.variance_fraction is None:
        between = expand(jnp.where(first, 0.0, fraction), x_0)
    else:
        between = prediction.variance_fraction
    log_variance = expand(low, x_0) + between * expand(high - low, x_0)

    noise = (x_t - expand(alpha, x_0) * x_0) / expand(sigma, x_0)
    mean = transition.posterior_mean(process, s, t_later, x_0, noise)
    predicted = transition.posterior_mean(process, s, t_later, prediction.x_0, prediction.noise)
    divergence = normal_kl(mean, expand(low, x_0), predicted, log_variance)
    # Steps without the decoder must not reach its gradient either.
    decodes = expand(index, x_0) < 1.5
    guess, std = jnp.where(decodes, prediction.x_0, x_0), jnp.exp(jnp.where(decodes, log_variance, 0.0) / 2)
    surprise = -decoder(x_0, guess, std)
    return _bits_per_dim(jnp.where(decodes, surprise, divergence))


def prior_bits(process: Process, x_0: Data) -> Float[Array, "batch"]:
    """``KL(q(x_1 | x_0) || N(0, sigma_1^2))`` in bits per dimension; sampling begins with such noise.

    DDPM and its successors write N(0, 1) instead, which for their processes is the same to nine digits.
    """
    snr = jnp.exp(process.log_snr(jnp.ones((), x_0.dtype)))
    return _bits_per_dim(snr * jnp.square(x_0) / 2)


def bound(
    denoise: DenoiseFn,
    process: Process,
    steps: int,
    x_0: Data,
    keys: Keys,
    fraction: float = 0.0,
    decoder: Decoder = NormalDecoder(),
) -> Bound:
    """All terms of the bound, each at one draw of the noise: `steps` calls of the denoiser.

    Args:
      denoise: the model.
      process, steps, fraction, decoder: see `step_bits`.
      x_0: clean data.
      keys: one per example; step i draws its noise from the key with i folded in.
    """

    def term(_: None, index: Int[Array, ""]) -> tuple[None, tuple]:
        t = index.astype(x_0.dtype) / steps
        noise = noise_like(fold_in(keys, index), x_0)
        x_t = diffuse(process, x_0, noise, t)
        prediction = denoise(x_t, t)
        times = jnp.broadcast_to(t, x_0.shape[:1])
        bits = step_bits(process, steps, times, x_0, x_t, prediction, fraction, decoder)
        return None, (
            bits,
            mean_per_example(jnp.square(prediction.x_0 - x_0)),
            mean_per_example(jnp.square(prediction.noise - noise)),
        )

    _, values = jax.lax.scan(term, None, jnp.arange(1, steps + 1))
    terms, x_0_error, noise_error = (value.T for value in values)
    prior = prior_bits(process, x_0)
    return Bound(prior + jnp.sum(terms, axis=1), prior, terms, x_0_error, noise_error)


def normal_kl(
    mean: Float[Array, "..."],
    log_variance: Float[Array, "..."],
    other_mean: Float[Array, "..."],
    other_log_variance: Float[Array, "..."],
) -> Float[Array, "..."]:
    """``KL(N(mean, variance) || N(other_mean, other_variance))`` elementwise, in nats."""
    log_ratio = log_variance - other_log_variance
    distance = jnp.square(mean - other_mean) * jnp.exp(-other_log_variance)
    return (jnp.expm1(log_ratio) - log_ratio + distance) / 2


def _by_level(x_0: Data, lowest: Data, inside: Data, highest: Data) -> Data:
    return jnp.where(x_0 < HALF_BIN - 1, lowest, jnp.where(x_0 > 1 - HALF_BIN, highest, inside))


def _bits_per_dim(nats: Data) -> Float[Array, "batch"]:
    return mean_per_example(nats) / math.log(2)
