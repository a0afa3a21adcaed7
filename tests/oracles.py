"""Exact denoisers: data whose posterior mean is known in closed form, for any process.

They stand in for a network wherever a `DenoiseFn` is wanted, so that a sampler can be held against the truth.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdiff.process.prediction import Prediction


def predict_from_data(process, x_t, t, x_0) -> Prediction:
    """The prediction with this image (needs sigma > 0)."""
    alpha, sigma = process.signal(t)
    return Prediction(x_0, (x_t - alpha * x_0) / sigma)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Independent pixels N(mean, std^2); both broadcast against images [batch, height, width, channels]."""

    mean: jax.Array
    std: jax.Array

    def denoiser(self, process):
        """The exact `DenoiseFn`, also at alpha = 0 and sigma = 0."""

        def denoise(x_t, t):
            alpha, sigma = process.signal(t)
            variance = alpha**2 * self.std**2 + sigma**2
            surprise = (x_t - alpha * self.mean) / variance
            return Prediction(self.mean + alpha * self.std**2 * surprise, sigma * surprise)

        return denoise

    def flow(self, process, x_t, t, t_next):
        """The exact solution of the probability-flow ODE: every pixel keeps its quantile."""
        (alpha, sigma), (alpha_next, sigma_next) = process.signal(t), process.signal(t_next)
        std, std_next = (jnp.hypot(a * self.std, s) for a, s in ((alpha, sigma), (alpha_next, sigma_next)))
        return alpha_next * self.mean + (x_t - alpha * self.mean) * std_next / std


@dataclasses.dataclass(frozen=True)
class Mixture:
    """``sum_k weights[k] N(means[k], stds[k]^2 I)`` over flattened images; means is [components, values]."""

    weights: jax.Array
    means: jax.Array
    stds: jax.Array

    def denoiser(self, process):
        """The exact `DenoiseFn` for sigma > 0."""

        def denoise(x_t, t):
            alpha, sigma = process.signal(t)
            values = x_t.reshape(x_t.shape[0], 1, -1)
            variance = alpha**2 * self.stds**2 + sigma**2
            away = values - alpha * self.means[None]
            logits = jnp.log(self.weights) - away.shape[-1] / 2 * jnp.log(variance)
            logits = logits[None] - jnp.sum(away**2, axis=-1) / (2 * variance)[None]
            shrink = (alpha * self.stds**2 / variance)[None, :, None]
            each = self.means[None] + shrink * away
            x_0 = jnp.sum(jax.nn.softmax(logits)[..., None] * each, axis=1).reshape(x_t.shape)
            return predict_from_data(process, x_t, t, x_0)

        return denoise


class Counting:
    """A denoiser that counts its calls; count under `jax.disable_jit()`, where a scan is a plain loop."""

    def __init__(self, denoise):
        self.denoise, self.calls = denoise, 0

    def __call__(self, *arguments):
        self.calls += 1
        return self.denoise(*arguments)
