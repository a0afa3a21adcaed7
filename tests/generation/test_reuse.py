"""DeepCache in a generator: a U-Net whose calls reuse features, with guidance and conditions."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.magnitude_unet import MagnitudeLevel, MagnitudeUNet
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.process.prediction import V
from jaxdiff.sampling.grids.continuous import Uniform
from jaxdiff.sampling.grids.given import Given
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.reuse import DeepCache
from jaxdiff.sampling.samplers.ddim import Ddim

SHAPE = (8, 8, 1)
NETWORK = UNet((Level(8, blocks=1), Level(8, blocks=1)), out_channels=1, middle=ResidualMiddle(None))


@pytest.fixture(scope="module")
def generator():
    conditioner = Conditioner(NoiseLevel(16), {"label": ClassLabel(5, 16)})
    denoiser = Denoiser(NETWORK, conditioner, RectifiedFlow(), V())
    x, t = jnp.zeros((1, *SHAPE)), jnp.full(1, 0.5)
    fields, drop = conditioner.example(1, SHAPE), conditioner.none_dropped(1)
    shapes = nn.meta.unbox(
        jax.eval_shape(lambda: denoiser.init(jax.random.key(0), x, t, fields, drop, train=False))["params"]
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape, np.float32)), shapes)
    devices = jax.devices()[:1]
    mesh = jax.make_mesh(
        (1, 1, 1),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=devices,
    )
    recipe = Recipe(Ddim(), Uniform(), ClassifierFree(2.0), steps=4)
    return Generator(denoiser, params, recipe, SHAPE, mesh)


def data(generator, **changes):
    recipe = dataclasses.replace(generator.recipe, **changes)
    return dataclasses.replace(generator, recipe=recipe)(label=[0, 3, 1], seed=2).astype(int)


def test_interval_1_changes_no_bit(generator):
    np.testing.assert_array_equal(data(generator, reuse=DeepCache(1, 2)), data(generator))


@pytest.mark.parametrize("blocks", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_second_call_at_the_same_point_says_the_same_for_each_label_and_its_null(generator, blocks):
    """Between two times that nearly agree the data stay, so that the features of the first call are right."""
    twice = Given((0.7, 0.7 - 1e-6))
    expected = data(generator, grid=twice, steps=2)
    found = data(generator, grid=twice, steps=2, reuse=DeepCache(2, blocks))
    assert expected.std() > 10
    np.testing.assert_allclose(found, expected, rtol=0, atol=1)


@pytest.mark.slow
def test_reuse_is_an_approximation_elsewhere(generator):
    whole = data(generator, steps=8)
    errors = [
        np.abs(data(generator, steps=8, reuse=DeepCache(interval)) - whole).mean() for interval in (2, 4)
    ]
    assert 0 < errors[0] < errors[1]


def test_networks_and_blocks_that_cannot_be_reused_are_refused_before_anything_is_compiled(generator):
    recipe = dataclasses.replace(generator.recipe, reuse=DeepCache(3, NETWORK.decoder_blocks))
    with pytest.raises(UserError, match=r"sampling\.reuse\.blocks=4: expected fewer than the 4 blocks"):
        dataclasses.replace(generator, recipe=recipe).check()
    magnitude = MagnitudeUNet((MagnitudeLevel(8, blocks=1),), out_channels=1, middle_attention=False)
    recipe = dataclasses.replace(generator.recipe, reuse=DeepCache(3))
    other = dataclasses.replace(
        generator, denoiser=generator.denoiser.clone(network=magnitude), recipe=recipe
    )
    with pytest.raises(UserError, match=r"sampling\.reuse='MagnitudeUNet': expected"):
        other.check()
