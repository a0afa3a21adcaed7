"""Memory under a compiler that fuses: closed forms, beside those of `test_memory` for one that stores all results."""

import math

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.cost.fusion import fused_bytes, tiled_bytes
from jaxdiff.cost.memory import live_bytes

ROWS = 1024
ARRAY = 4 * ROWS * 256
"""Bytes of f32[1024,256], which tiles fill."""


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


X, W = shape(ROWS, 256), shape(256, 256)


def fused(function, *arguments):
    return fused_bytes(jax.make_jaxpr(function)(*arguments))


def test_elementwise_operations_store_nothing():
    assert fused(lambda x: jnp.sin(jnp.cos(jnp.tan(jnp.exp(x)))), X) == 0
    assert fused(lambda x, w: jnp.sin(jnp.cos(x @ w)) @ w, X, W) == ARRAY
    assert fused(lambda x, w: jax.nn.silu((x @ w) * 2 + 1) @ w, X, W) == ARRAY


def test_a_scale_and_a_shift_of_channels_are_no_arrays():
    def modulated(x, w):
        h = x @ w
        return (h * jnp.mean(h, 0)[None] + jnp.sum(h, 0)[None]) @ w

    assert fused(modulated, X, W) == pytest.approx(ARRAY, rel=0.01)


def test_a_sum_of_two_arrays_is_stored_in_the_place_of_both():
    def sums(x, w):
        h = x @ w + jnp.sin(x) @ w
        return jnp.tan(h) @ w

    assert fused(sums, X, W) == 3 * ARRAY  # the sum, before what it adds is freed
    narrow = lambda x, w: jnp.astype(x @ w, jnp.bfloat16) @ jnp.astype(w, jnp.bfloat16)  # noqa: E731
    assert fused(narrow, X, W) == 1.5 * ARRAY


def tower(layers, block=lambda f: f):
    """Layers of a product and two activations, forward and backward."""

    def apply(kernels, x):
        for kernel in kernels:
            x = block(lambda w, x: jnp.sin(jnp.tanh(x @ w)))(kernel, x)
        return x

    def back(kernels, x, cotangent):
        return jax.vjp(lambda kernels: apply(kernels, x), kernels)[1](cotangent)

    return jax.make_jaxpr(back)([W] * layers, X, X)


def test_a_layer_leaves_one_array_for_the_backward_pass_whatever_its_activations():
    found = [fused_bytes(tower(layers)) / ARRAY for layers in (4, 8, 16)]
    assert found[1] - found[0] == pytest.approx(4, abs=0.3)
    assert found[2] - found[1] == pytest.approx(8, abs=0.3)
    every = [live_bytes(tower(layers)) / ARRAY for layers in (4, 8)]
    assert every[1] - every[0] > 2 * (found[1] - found[0])


def test_loops_and_branches_count_what_is_inside():
    def loop(x, w):
        return jax.lax.scan(lambda h, _: (jnp.sin(h @ w) @ w, None), x, length=5)[0]

    assert fused(loop, X, W) == pytest.approx(ARRAY, rel=0.01)
    branch = lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda x: (x @ w) @ w, lambda x: x, x)  # noqa: E731
    assert fused(branch, X, W) == pytest.approx(ARRAY, rel=0.01)


@pytest.mark.parametrize(
    ("sizes", "padded"),
    [
        ((256, 1024), (256, 1024)),
        ((32, 32, 32, 32), (32, 32, 32, 128)),
        ((128, 32, 32, 32), (32, 32, 32, 128)),
        ((64, 64, 64, 3), (64, 64, 128, 3)),
        ((100_000,), (100_000,)),
        ((8, 8, 8, 3), (8, 8, 8, 3)),
    ],
)
def test_tiles_pad_in_the_layout_that_pads_the_least(sizes, padded):
    assert tiled_bytes(shape(*sizes)) == 4 * math.prod(padded)
