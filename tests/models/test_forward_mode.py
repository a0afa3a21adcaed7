"""A kernel with a backward pass of its own, in every mode of differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models.forward_mode import with_forward_mode


def reference(arrays, weight):
    x, y = arrays
    return weight * jnp.sin(x) * jnp.square(y)


@jax.custom_vjp
def fused(x, y, weight):
    return reference((x, y), weight)


def fused_forward(x, y, weight):
    return fused(x, y, weight), (x, y, weight, jnp.sin(x))


def fused_backward(residuals, slope):
    x, y, weight, sine = residuals
    BACKWARD.append(True)
    return slope * weight * jnp.cos(x) * y**2, slope * weight * 2 * sine * y, None


fused.defvjp(fused_forward, fused_backward)
BACKWARD: list[bool] = []
both = with_forward_mode(lambda arrays, weight: fused(*arrays, weight), reference)
X, Y, W = jnp.array([0.3, -1.2]), jnp.array([0.7, 1.5]), jnp.array([2, 3])
TANGENTS = (jnp.array([0.5, -0.4]), jnp.array([1.0, 0.2]))


def loss(function):
    return lambda x, y: jnp.sum(jnp.exp(function((x, y), W)))


MODES = {
    "value": lambda function: loss(function)(X, Y),
    "gradient": lambda function: jax.grad(loss(function), (0, 1))(X, Y),
    "forward": lambda function: jax.jvp(loss(function), (X, Y), TANGENTS)[1],
    "forward over reverse": lambda function: jax.jvp(jax.grad(loss(function), (0, 1)), (X, Y), TANGENTS)[1],
    "reverse over forward": lambda function: jax.grad(
        lambda x, y: jax.jvp(loss(function), (x, y), TANGENTS)[1], (0, 1)
    )(X, Y),
    "reverse over reverse": lambda function: jax.grad(lambda x: jnp.sum(jax.grad(loss(function))(x, Y) ** 2))(
        X
    ),
    "one argument": lambda function: jax.jvp(lambda y: function((X, y), W), (Y,), (TANGENTS[1],)),
    "gradients of a batch": lambda function: jax.vmap(
        jax.grad(lambda x, y, w: jnp.sum(function((x, y), w))), (0, None, 0)
    )(X, Y[0], W),
    "tangents of a batch": lambda function: jax.vmap(
        lambda t: jax.jvp(lambda x: function((x, Y), W), (X,), (t,))[1]
    )(jnp.eye(2)),
    "calls of several shapes": lambda function: jax.grad(
        lambda x: loss(function)(x, Y) + jnp.sum(function((x[:1], Y[:1]), W[1])) * loss(function)(Y, x)
    )(X),
    "rematerialised": lambda function: jax.grad(jax.checkpoint(loss(function)), (0, 1))(X, Y),
    "scanned": lambda function: jax.grad(
        lambda x: jnp.sum(jax.lax.scan(lambda c, _: (function((c, Y), W), None), x, length=3)[0])
    )(X),
}


@pytest.mark.spread(3)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("compiled", [False, True])
def test_derivatives_match_the_reference(mode, compiled):
    wrap = jax.jit if compiled else lambda function: function
    found = wrap(lambda: MODES[mode](both))()
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(MODES[mode](reference)), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


def test_gradients_run_the_kernel_s_own_backward_pass():
    BACKWARD.clear()
    jax.make_jaxpr(jax.jit(jax.grad(loss(both))))(X, Y)
    assert BACKWARD
    BACKWARD.clear()
    jax.jvp(loss(both), (X, Y), TANGENTS)
    assert not BACKWARD
