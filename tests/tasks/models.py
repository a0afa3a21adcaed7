"""Denoisers with optimal parameters or losses in closed form, and exact expectations."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.denoiser import Denoiser
from jaxdiff.embeddings import Embeddings
from jaxdiff.process.labels import Time
from jaxdiff.process.prediction import Data
from jaxdiff.process.time_sampling import UniformSteps
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.training.step import Context

MEAN, STD = 0.3, 0.7
STEPS = 5
OF_DATA = Data(Time(1.0))


class Label(nn.Module):
    """Passes the noise label to the network unchanged."""

    def __call__(self, noise_label):
        return Embeddings(vector=noise_label[:, None])


class Affine(nn.Module):
    """``a x + b`` with separate a and b at each of the times i / steps; the label is the time."""

    steps: int = STEPS

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        index = jnp.round(embeddings.vector * self.steps).astype(int)[:, :, None, None] - 1
        a, b = (self.param(name, nn.initializers.zeros, (self.steps,)) for name in "ab")
        return a[index] * x + b[index]


class Zero(nn.Module):
    """Zero output. With `prediction.Edm`, this is the optimal denoiser of N(0, sigma_data^2) images."""

    def __call__(self, x, embeddings, *, train):
        return 0 * x


class Constant(nn.Module):
    """A constant output."""

    shape: tuple

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        return self.param("output", nn.initializers.zeros, self.shape)


def affine_task(process, objective, parameterization=OF_DATA, uncertainty=None, time_sampler=None):
    """An affine model of one pixel on the times i / STEPS."""
    denoiser = Denoiser(Affine(), Conditioner(Label()), process, parameterization, uncertainty)
    return DenoisingTask(denoiser, time_sampler or UniformSteps(STEPS), (1, 1, 1), objective)


def best(process, parameterization, t):
    """The (a, b) of the posterior mean of N(MEAN, STD^2) pixels, in terms of the target of `parameterization`."""
    alpha, sigma = process.signal(t)
    shrink = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    of_x_0, of_noise = parameterization.row(process, t)
    offset = MEAN * (1 - alpha * shrink)
    return (
        of_x_0 * shrink + of_noise * (1 - alpha * shrink) / sigma,
        (of_x_0 - of_noise * alpha / sigma) * offset,
    )


def mmse(process, t):
    """The smallest possible squared error of the image: the posterior variance."""
    alpha, sigma = process.signal(t)
    return STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)


def quadrature(u):
    """Examples whose weighted sum is the exact mean over pixel and noise, for each of the numbers `u`.

    Three nodes of Gauss and Hermite in each are exact for polynomials of degree 5; losses are quadratic.

    Returns the examples [9 len(u)], and a function from their losses to the means [len(u)].
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    pairs = np.array(list(itertools.product(nodes, nodes)))
    products = jnp.asarray([v * w for v, w in itertools.product(weights, weights)])
    count = len(u)
    x_0, noise = (jnp.tile(jnp.asarray(pairs[:, i]), count).reshape(-1, 1, 1, 1) for i in range(2))
    examples = {
        "x_0": MEAN + STD * x_0,
        "noise": noise,
        "u": jnp.repeat(jnp.asarray(u), 9),
        "importance": jnp.ones(9 * count),
        "drop": {},
        "fields": {},
    }
    return examples, lambda losses: losses.reshape(count, 9) @ products


@functools.partial(jax.jit, static_argnums=0)
def losses_of(task, params, examples):
    """The loss of each example, and the metrics; without dropout there is nothing for the key to do."""
    return task.loss(params, Context(), examples, jax.random.key(0), train=True)
