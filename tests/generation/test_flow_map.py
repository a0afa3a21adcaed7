"""Generators of flow maps, with a network that is the average velocity of Gaussian images in closed form."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.denoiser import Denoiser
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.process.labels import Time
from jaxdiff.process.prediction import Velocity
from jaxdiff.sampling.grids.continuous import Uniform
from jaxdiff.sampling.guidance.autoguidance import Autoguidance
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.flow_map import FlowMap

STD, SHAPE = 0.4, (3, 2, 1)


class Place(nn.Module):
    """A number as the first or the second of a vector of two."""

    index: int

    def __call__(self, label):
        return Embeddings(vector=label[:, None] * jnp.eye(2)[self.index][None])


class Average(nn.Module):
    """The average velocity of N(0, STD^2) between t and r, from the vector (t, t - r)."""

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        gain = self.param("gain", nn.initializers.ones, ())
        t, span = (column[:, None, None, None] for column in embeddings.vector.T)
        r = t - span
        std_t, std_r = (jnp.hypot((1 - time) * STD, time) for time in (t, r))
        return gain * x * ((t + r) * (1 + STD**2) - 2 * STD**2) / ((std_t + std_r) * std_t)


def a_generator(span=True, sampler=None, steps=1, guidance=None):
    conditioner = Conditioner(Place(0), {}, span=Place(1) if span else None)
    denoiser = Denoiser(Average(), conditioner, RectifiedFlow(), Velocity(Time(1.0)))
    recipe = Recipe(sampler or FlowMap(), Uniform(), guidance or ClassifierFree(), steps)
    mesh = jax.make_mesh(
        (1, 1, 1),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[:1],
    )
    return Generator(denoiser, {"network": {"gain": jnp.float32(1.0)}}, recipe, SHAPE, mesh)


def images(generator):
    return np.asarray(generator(8, seed=3), int)


def test_one_step_and_many_give_the_same_images():
    one = images(a_generator())
    assert one.std() > 20
    for steps in (2, 5):
        assert np.abs(images(a_generator(steps=steps)) - one).max() <= 1  # rounding to 256 levels


def test_they_are_those_of_many_steps_of_the_plain_model():
    plain = images(a_generator(sampler=Ddim(), steps=400))
    assert np.abs(plain - images(a_generator())).max() <= 2


def test_a_model_that_reads_one_time_is_refused():
    with pytest.raises(UserError, match=r"sampling.sampler='FlowMap': expected a model that reads .* Fix: "):
        a_generator(span=False).check()


def test_a_guiding_model_is_refused():
    generator = a_generator(guidance=Autoguidance(2.0))
    guided = dataclasses.replace(generator, guiding_model=generator)
    with pytest.raises(UserError, match=r"sampling.sampler='FlowMap': expected one model.* Fix: "):
        guided.check()
