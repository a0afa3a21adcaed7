"""How wrong a denoiser is at each noise level: a small network that is trained beside it."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.models.layers import Dense
from jaxdiff.typing import Array, Float


class Uncertainty(nn.Module):
    """The log-variance ``u(sigma)`` of the error: random Fourier features and one linear layer (Karras et al. 2024).

    The features are ``sqrt(2) cos(2 pi (f c + phase))`` of the noise label c ("EDM2", appendix B), with f ~ N(0, 1)
    and a uniform phase; they are drawn once and never move. The layer starts at 0, where the loss is the plain one.

    Attributes:
      width: the number of features.
    """

    width: int = 128

    def __post_init__(self):
        require(self.width > 0, "width", self.width, "it is a number of features", "try 128")
        super().__post_init__()

    @nn.compact
    def __call__(self, noise_label: Float[Array, "batch"]) -> Float[Array, "batch"]:
        frequencies = self.param("frequencies", nn.initializers.normal(1.0), (self.width,))
        phases = self.param("phases", nn.initializers.uniform(1.0), (self.width,))
        turns = noise_label[:, None] * frequencies[None] + phases[None]
        waves = math.sqrt(2) * jnp.cos(2 * math.pi * jax.lax.stop_gradient(turns))
        return Dense(1, zero=True, name="linear")(waves)[:, 0]
