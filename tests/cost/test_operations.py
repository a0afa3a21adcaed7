"""Multiply-adds of layers, gradients and recomputation against closed forms."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.cost.operations import count
from jaxdiff.models.layers import GroupNorm


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def counted(function, *arguments):
    return count(jax.make_jaxpr(function)(*arguments))


def conv(x, kernel, stride=1, padding=1, groups=1, dilation=1, stretch=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 2, [(padding, padding)] * 2, (stretch,) * 2, (dilation,) * 2,
        ("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip


# Layer, shapes of x and kernel, and the textbook's multiply-adds.
LAYERS = {
    "dense": (lambda x, w: x @ w, (5, 7), (7, 11), 5 * 7 * 11),
    "dense of pixels": (lambda x, w: x @ w, (2, 6, 6, 3), (3, 4), 2 * 36 * 3 * 4),
    "batched": (lambda x, w: jnp.einsum("bij,bjk->bik", x, w), (3, 4, 5), (3, 5, 6), 3 * 4 * 5 * 6),
    "conv": (conv, (2, 8, 8, 3), (3, 3, 3, 5), 2 * 64 * 9 * 3 * 5),
    "strided": (lambda x, w: conv(x, w, stride=2), (2, 8, 8, 3), (3, 3, 3, 5), 2 * 16 * 9 * 3 * 5),
    "patches": (lambda x, w: conv(x, w, 4, 0), (2, 8, 8, 3), (4, 4, 3, 5), 2 * 4 * 16 * 3 * 5),
    "valid": (lambda x, w: conv(x, w, padding=0), (2, 8, 8, 3), (3, 3, 3, 5), 2 * 36 * 9 * 3 * 5),
    "grouped": (lambda x, w: conv(x, w, groups=2), (2, 8, 8, 6), (3, 3, 3, 4), 2 * 64 * 9 * 3 * 4),
    "depthwise": (lambda x, w: conv(x, w, groups=6), (2, 8, 8, 6), (3, 3, 1, 6), 2 * 64 * 9 * 6),
    "dilated": (lambda x, w: conv(x, w, padding=2, dilation=2), (2, 8, 8, 3), (3, 3, 3, 5), 2 * 64 * 9 * 15),
    "small map": (conv, (2, 2, 2, 3), (3, 3, 3, 5), 2 * 16 * 3 * 5),  # four of nine taps are inside the image
    # Every value meets every tap once: zeros between values cost nothing.
    "transposed": (lambda x, w: conv(x, w, padding=2, stretch=2), (2, 4, 4, 3), (4, 4, 3, 5), 2 * 16 * 16 * 15),
}  # fmt: skip


@pytest.mark.parametrize(("layer", "x", "kernel", "expected"), LAYERS.values(), ids=LAYERS)
def test_layers_have_the_textbook_multiply_adds(layer, x, kernel, expected):
    found = counted(layer, shape(*x), shape(*kernel))
    assert found.by_dtype == {"float32": expected}
    assert found.total == expected
    assert found.constant == 0


@pytest.mark.parametrize(("layer", "x", "kernel", "expected"), LAYERS.values(), ids=LAYERS)
def test_the_gradient_of_each_argument_costs_as_much_as_the_layer(layer, x, kernel, expected):
    def pull(x, kernel, cotangent, wanted):
        _, back = jax.vjp(
            lambda *both: layer(*(both if wanted == "both" else (x, *both))),
            *((x, kernel) if wanted == "both" else (kernel,)),
        )
        return back(cotangent)

    arguments = shape(*x), shape(*kernel)
    out = jax.eval_shape(layer, *arguments)
    assert counted(lambda *a: pull(*a, "kernel"), *arguments, out).total == 2 * expected
    assert counted(lambda *a: pull(*a, "both"), *arguments, out).total == 3 * expected


def network(kernels, x, act=lambda x: x):
    """A convolution, a strided one, a grouped one, and a dense layer."""
    first, second, third, dense = kernels
    x = act(conv(x, first))
    x = act(conv(x, second, stride=2))
    x = act(conv(x, third, groups=2))
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    return act(x @ dense)


KERNELS = (shape(3, 3, 3, 8), shape(3, 3, 8, 8), shape(3, 3, 4, 8), shape(8, 5))
X = shape(2, 8, 8, 3)
FIRST = 2 * 64 * 27 * 8
FORWARD = FIRST + 2 * 16 * 9 * 64 + 2 * 16 * 9 * 32 + 2 * 16 * 40


def gradients(function):
    def back(kernels, x, cotangent):
        return jax.vjp(lambda kernels: function(kernels, x), kernels)[1](cotangent)

    return counted(back, KERNELS, X, jax.eval_shape(function, KERNELS, X)).total


def test_training_costs_three_forwards_minus_the_gradient_of_the_input():
    assert counted(network, KERNELS, X).total == FORWARD
    assert gradients(network) == 3 * FORWARD - FIRST


def test_remat_adds_one_forward():
    def active(kernels, x):
        return network(kernels, x, jnp.sin)

    assert gradients(active) == 3 * FORWARD - FIRST
    assert gradients(jax.checkpoint(active)) == 4 * FORWARD - FIRST


def test_attention():
    batch, queries, keys, heads, size = 2, 12, 7, 3, 4
    found = counted(
        jax.nn.dot_product_attention,
        shape(batch, queries, heads, size),
        *[shape(batch, keys, heads, size)] * 2,
    )
    assert found.total == 2 * batch * heads * queries * keys * size


@pytest.mark.parametrize("features", [32, 96])
def test_folding_channels_into_groups_is_counted_separately(features):
    batch = 3
    norm, x = GroupNorm(groups=8), shape(batch, 4, 4, features)
    params = jax.eval_shape(norm.init, jax.eval_shape(lambda: jax.random.key(0)), x)
    params = nn.meta.unbox(params)
    found = counted(norm.apply, params, x)
    assert found.total == 0
    assert found.constant == 4 * batch * features * 8  # mean and variance, each folded and unfolded

    def back(params, x, cotangent):
        return jax.vjp(norm.apply, params, x)[1](cotangent)

    assert counted(back, params, x, x).total == 0


def test_a_product_of_inputs_is_not_constant():
    def scaled(x, w):
        return (jnp.eye(7) * jnp.sum(w)) @ (2 * w), jnp.ones((3, 5)) @ x

    found = counted(scaled, shape(5, 7), shape(7, 7))
    assert found.total == 7**3
    assert found.constant == 3 * 5 * 7
    assert counted(lambda x: x @ np.ones((7, 2), np.float32), shape(5, 7)).constant == 5 * 7 * 2


def test_a_scans_constant_initial_value_is_not_constant_inside():
    def powers(w):
        return jax.lax.scan(lambda x, _: (x @ w, None), jnp.ones((2, 6)), length=5)

    assert counted(powers, shape(6, 6)).total == 5 * 2 * 6 * 6


def test_resizing_with_a_constant_matrix_is_counted():
    found = counted(lambda x: jnp.einsum("bhwc,hy->bywc", x, jnp.ones((8, 4))), shape(2, 8, 8, 3))
    assert found.total == 2 * 4 * 8 * 8 * 3


def test_scans_count_their_length_and_conditionals_their_largest_branch():
    w, x = shape(6, 6), shape(2, 6)
    step = 2 * 6 * 6

    def scanned(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), x @ w @ w), x, length=5)

    def nested(x, w):
        return jax.lax.scan(lambda x, _: (scanned(x, w)[0], None), x, length=3)

    def branches(x, w):
        return jax.lax.switch(jnp.int32(x[0, 0]), [lambda: x, lambda: x @ w @ w, lambda: x @ w])

    def loop(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 0, lambda x: x @ w, x)

    assert counted(scanned, x, w).total == 5 * 3 * step
    assert counted(nested, x, w).total == 3 * 5 * 3 * step
    assert counted(branches, x, w).total == 2 * step
    assert counted(loop, x, w).total == step


def test_calls_of_every_kind_are_counted():
    @jax.custom_vjp
    def own(x, w):
        return x @ w

    own.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))

    @jax.custom_jvp
    def other(x, w):
        return x @ w

    other.defjvp(lambda primals, tangents: (primals[0] @ primals[1], tangents[0] @ primals[1]))
    w, x = shape(6, 6), shape(2, 6)
    for call in (own, other, jax.jit(own), jax.checkpoint(own), jax.vmap(own, (0, None))):
        assert counted(call, x, w).total == 2 * 6 * 6
    mapped = jax.vmap(own)
    assert counted(mapped, shape(4, 2, 6), shape(4, 6, 6)).total == 4 * 2 * 6 * 6


def test_products_are_counted_by_the_dtype_of_their_operands():
    def mixed(x, w):
        half = x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)
        return half.astype(jnp.float32) @ w

    found = counted(mixed, shape(2, 6), shape(6, 6))
    assert found.by_dtype == {"bfloat16": 72, "float32": 72}
    assert math.isclose(found.total, 144)
