"""Planned memory against closed forms, and against the arrays that devices hold."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.cost import memory
from jaxdiff.training.state import abstract_state, create_state
from tests.training import toy

N = 1000
BYTES = 4 * N


def live(function, *arguments):
    return memory.live_bytes(jax.make_jaxpr(function)(*arguments))


def vector(size=N, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((size,), dtype)


def test_a_chain_holds_two_arrays_excluding_input_and_output():
    assert live(jnp.sin, vector()) == 0
    assert live(lambda x: jnp.sin(jnp.cos(x)), vector()) == BYTES
    assert live(lambda x: jnp.sin(jnp.cos(jnp.tan(jnp.exp(x)))), vector()) == 2 * BYTES
    assert live(lambda x: jnp.sin(jnp.cos(jnp.tan(jnp.exp(x)))), vector(dtype=jnp.bfloat16)) == BYTES


def test_an_array_lives_until_its_last_reader():
    def late(x):
        first = jnp.sin(x)
        y = jnp.exp(jnp.tan(jnp.cos(x)))
        return y + first

    assert live(late, vector()) == 3 * BYTES


def test_an_unread_result_is_freed_at_once():
    both = jax.jit(lambda x: (jnp.cos(x), jnp.tan(x)))
    assert live(lambda x: jnp.sin(jnp.exp(jnp.tan(both(x)[0]))), vector()) == 2 * BYTES


def tower(layers, block=lambda f: f):
    """Layers ``x -> sin(sin(x w))``; the backward pass needs the inputs of both sines and of the product."""

    def apply(kernels, x):
        for i in range(layers):
            x = block(lambda w, x: jnp.sin(jnp.sin(x @ w)))(kernels[i], x)
        return x

    def back(kernels, x, cotangent):
        return jax.vjp(lambda kernels: apply(kernels, x), kernels)[1](cotangent)

    def bytes_for(rows, size=8):
        x = jax.ShapeDtypeStruct((rows, size), jnp.float32)
        return live(back, [jax.ShapeDtypeStruct((size, size), jnp.float32)] * layers, x, x)

    return bytes_for


def test_activations_grow_with_depth_and_batch_unless_rematerialised():
    rows = 1024
    array = 4 * rows * 8
    plain = [tower(layers)(rows) / array for layers in (4, 8, 16)]
    remat = [tower(layers, jax.checkpoint)(rows) / array for layers in (4, 8, 16)]
    # Without remat a layer keeps the cosines at both sines and its input; with remat, its input alone.
    assert np.allclose(np.diff(plain), [3 * 4, 3 * 8], atol=0.1)
    assert np.allclose(np.diff(remat), [4, 8], atol=0.1)
    # The backward pass of one block holds that block's values again.
    assert remat[0] > 4 + 1.9
    assert tower(8)(2 * rows) == pytest.approx(2 * tower(8)(rows), rel=0.01)


def test_branches_loops_and_calls_count_the_arrays_inside_them():
    def inside(x):
        return jnp.sin(jnp.cos(jnp.tan(jnp.exp(x))))

    assert live(jax.jit(inside), vector()) == 2 * BYTES
    assert live(lambda x: jnp.sin(jax.jit(inside)(x)), vector()) == 2 * BYTES
    assert live(jax.jit(lambda x: jnp.sin(jnp.cos(x))), vector()) == BYTES  # its result is an output
    assert live(lambda x: jax.lax.cond(x[0] > 0, inside, jnp.cos, x), vector()) >= 2 * BYTES
    assert live(lambda x: jax.lax.cond(x[0] > 0, inside, jnp.cos, x), vector()) < 3 * BYTES
    scanned = live(lambda x: jax.lax.scan(lambda x, _: (inside(x), x), x, length=10), vector())
    assert scanned == pytest.approx(2 * BYTES, rel=0.01)  # the stacked results are an output
    stacked = live(lambda x: jnp.sum(jax.lax.scan(lambda x, _: (inside(x), x), x, length=10)[1], 0), vector())
    assert 12 * BYTES < stacked <= 13.1 * BYTES


@pytest.mark.parametrize("shape", [{}, {"fsdp": 8}, {"fsdp": 2, "tensor": 2}])
def test_state_bytes_match_the_devices(shape):
    mesh = toy.mesh(8, **shape)
    state = create_state(toy.WIDE, toy.ADAM, mesh, 0, emas=2)
    kept = memory.of_step(abstract_state(toy.WIDE, toy.ADAM, mesh, 2), 7, 1000, 1)

    def held(tree):
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    assert kept.parameters == held(state.params)
    assert kept.ema == held((state.ema, state.extra_emas)) == 2 * held(state.params)
    assert kept.optimizer == held((state.opt_state, state.step, state.task_state))
    assert kept.gradients == kept.parameters
    kernel = 4 * 128 * 128
    assert kept.gathered == (2 * kernel if shape else 0)
    assert (kept.parameters < kernel) == bool(shape)
    assert kept.total == kept.parameters + kept.ema + kept.optimizer + 7 + kept.gradients + max(
        1000 + kept.gathered, kept.update
    )


def test_micro_batches_need_a_second_gradient():
    state = abstract_state(toy.WIDE, optax.sgd(0.1), toy.mesh())
    once, twice = (memory.of_step(state, 0, 0, accumulation) for accumulation in (1, 2))
    assert twice.gradients == 2 * once.gradients
    assert once.optimizer < 100  # plain gradient descent keeps the step number only
