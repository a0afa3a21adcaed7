"""Derivatives of whole networks against finite differences, in float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.spatial_transformer import SpatialTransformer
from jaxdiff.models.transformer import TransformerMiddle
from jaxdiff.models.unet import Level, UNet

QUICK = {"xla_backend_optimization_level": 0}
BOTH = PixelAttention(cross_attention=True, head_dim=4)
NETWORKS = {
    "pixel_attention": UNet(
        (Level(8, 0, BOTH),), 2, middle=TransformerMiddle(8, 1, head_dim=4), dtype="float64", remat=True
    ),
    "spatial_transformer": UNet(
        (Level(8, 0),),
        2,
        block=BlockOptions(modulation="shift"),
        middle=ResidualMiddle(SpatialTransformer(heads=2, head_dim=None)),
        dtype="float64",
    ),
}
STEP = 5e-3  # large, because the vector's layers compute in float32


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def problem(name):
    """A loss of parameters, image and vector; a point; and a direction."""
    network, x, vector = NETWORKS[name], draw(2, 4, 4, 2), draw(2, 6, seed=1)
    tokens = (
        None
        if name == "magnitude"
        else Tokens(draw(2, 3, 5, seed=2), jnp.arange(3)[None] < jnp.array([[3], [1]]))
    )
    make = functools.partial(network.init, train=False)
    shapes = nn.meta.unbox(jax.eval_shape(make, jax.random.key(0), x, Embeddings(vector, tokens)))
    leaves, tree = jax.tree.flatten(shapes)
    values = [0.4 * draw(*leaf.shape, seed=i) + (leaf.ndim == 1) for i, leaf in enumerate(leaves)]
    params = jax.tree.unflatten(tree, values)

    def loss(params, x, vector):
        out = network.apply(params, x, Embeddings(vector, tokens), train=False)
        return jnp.mean(jnp.square(out - x))

    point = (params, x, vector)
    return loss, point, jax.tree.map(lambda leaf: draw(*leaf.shape, seed=leaf.size) / leaf.size**0.5, point)


def difference(function, point, direction):
    """The derivative along a direction by five points, with an error of the fourth order in the step."""
    sums = None
    for weight, steps in ((1, -2), (-8, -1), (8, 1), (-1, 2)):
        value = function(
            *jax.tree.map(lambda x, change, steps=steps: x + steps * STEP * change, point, direction)
        )
        terms = [weight * np.asarray(leaf) / (12 * STEP) for leaf in jax.tree.leaves(value)]
        sums = terms if sums is None else [old + new for old, new in zip(sums, terms, strict=True)]
    return sums


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_forward_mode_and_forward_over_reverse(name):
    with jax.enable_x64(True):
        loss, point, direction = problem(name)
        both = jax.value_and_grad(loss, (0, 1, 2))

        @functools.partial(jax.jit, compiler_options=QUICK)
        def tangents(*direction):
            return jax.jvp(both, point, direction)[1]

        found = jax.tree.leaves(tangents(*direction))
        expected = difference(jax.jit(both, compiler_options=QUICK), point, direction)
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * max(1.0, np.abs(want).max()))
