"""Latent models of a few lines, whose samples follow from the autoencoder alone."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.codecs.latent import Latent
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.denoiser import Denoiser
from jaxdiff.embeddings import Embeddings
from jaxdiff.models.autoencoder_kl import AutoencoderKL
from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.process.prediction import Data
from jaxdiff.runs.weights import FileWeights
from tests.generation.test_inputs import a_generator
from tests.models.autoencoders import random_params

NETWORK = AutoencoderKL((4, 4), 1, groups=2, middle_attention=False)  # two pixels along a latent
CODEC = Latent(NETWORK, FileWeights("autoencoder.safetensors"), scaling_factor=0.3, posterior="mode")
RNG = np.random.default_rng(0)
PHOTOS = RNG.integers(0, 256, (2, 8, 12, 3), np.uint8)
MASK = np.zeros((8, 12), bool)
MASK[3:6, 3:10] = True


@functools.cache
def frozen():
    return {"autoencoder": jax.tree.map(jnp.asarray, random_params(NETWORK))}


class NoNoise(nn.Module):
    """A vector of zeros for every noise level, with a number for each channel."""

    def __call__(self, noise_label):
        return Embeddings(vector=jnp.zeros((noise_label.shape[0], 4)))


class Shown(nn.Module):
    """Predicts the last spatial channels, which are latents, times a number, plus the vector."""

    factor: float = 1.0

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        shown = 0.0 if embeddings.spatial is None else self.factor * embeddings.spatial[..., -4:]
        return shown + embeddings.vector[:, None, None] + jnp.zeros_like(x)


class Mixed(nn.Module):
    """Predicts a fixed nonlinear function of everything that it is shown."""

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        seen = jnp.concatenate([x, embeddings.spatial], axis=-1)
        return jnp.tanh(jnp.roll(seen, 1, axis=2)[..., -4:] + 0.5 * x) + jnp.sin(
            3 * embeddings.vector[:, None, None] + seen[..., -4:]
        )


def a_latent_generator(conditions, network, params=None, codec=CODEC, shape=(8, 12, 3), **recipe):
    """A model of latents with the given conditions; a network that predicts the data."""
    plain = a_generator({}, {}, shape)
    params = (
        {} if params is None else {"conditioner": {f"parts_{name}": tree for name, tree in params.items()}}
    )
    conditioner = Conditioner(NoNoise(), conditions)
    return dataclasses.replace(
        plain,
        denoiser=Denoiser(network, conditioner, RectifiedFlow(), Data()),
        params=jax.tree.map(jnp.asarray, params),
        recipe=dataclasses.replace(plain.recipe, **recipe),
        codec=codec,
        frozen=frozen(),
    )


def decoded(latents, codec=CODEC):
    """Images of scaled latents."""
    return codec.stored(np.asarray(jax.jit(codec.decode)(frozen(), jnp.asarray(latents))))


def latents_of(images):
    """Modes of the posteriors of images in [-1, 1], not scaled."""
    return np.asarray(jax.jit(CODEC.latents)(frozen(), jnp.asarray(images, jnp.float32)))
