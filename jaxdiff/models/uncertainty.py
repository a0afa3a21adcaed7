"""Log-variance of the denoising error by noise level: a small network that is trained with the denoiser."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.errors import positive
from jaxdiff.models.layers import Dense
from jaxdiff.typing import Array, Float


class Uncertainty(nn.Module):
    """The log-variance ``u(sigma)`` of the error: random Fourier features and one linear layer (Karras et al. 2024).

    The features are ``sqrt(2) cos(2 pi (f c + phase))`` of the noise label c ("EDM2", appendix B), with f ~ N(0, 1)
    and a uniform phase; both are drawn once and are not trained. The layer starts at 0, where the loss is unweighted.

    Attributes:
      width: number of Fourier features.
    """

    width: int = 128

    def __post_init__(self):
        positive(self, "width")
        super().__post_init__()

    @nn.compact
    def __call__(self, noise_label: Float[Array, "batch"]) -> Float[Array, "batch"]:
        frequencies = self.param("frequencies", nn.initializers.normal(1.0), (self.width,))
        phases = self.param("phases", nn.initializers.uniform(1.0), (self.width,))
        turns = noise_label[:, None] * frequencies[None] + phases[None]
        features = math.sqrt(2) * jnp.cos(2 * math.pi * jax.lax.stop_gradient(turns))
        return Dense(1, zero=True, name="linear")(features)[:, 0]
