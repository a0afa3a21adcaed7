"""Adafactor: optax's own where both can do the same, the paper's statistics, and memory of rows and columns only."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.config import build, from_json, spec, to_json
from jaxdiff.cost import memory
from jaxdiff.errors import UserError
from jaxdiff.training.adafactor import Adafactor, matrix_shape
from jaxdiff.training.optimizer import Cosine, Optimizer
from jaxdiff.training.state import abstract_state
from tests.training import toy

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape).astype(np.float32))


PARAMS = {"kernel": normal(3, 3, 8, 12), "bias": normal(12)}
GRADIENTS = [jax.tree.map(lambda leaf: normal(*leaf.shape), PARAMS) for _ in range(3)]


def updates(optimizer):
    state, found = optimizer.init(PARAMS), []
    for gradient in GRADIENTS:
        update, state = optimizer.update(gradient, state, PARAMS)
        found.append(update)
    return found


def test_it_is_an_optimizer():
    assert isinstance(Adafactor(), Optimizer)


def matrices(tree):
    return {**tree, "kernel": tree["kernel"].reshape(72, 12)}


@pytest.mark.spread(1)
@pytest.mark.parametrize("relative", [False, True])
def test_without_decay_it_is_that_of_optax_on_matrices(relative):
    ours = Adafactor(0.01, Cosine(), relative, decay_power=0.7, min_factored=8).make(10)
    rate = Cosine()(0.01, 10)
    theirs = optax.adafactor(rate, 8, decay_rate=0.7, multiply_by_parameter_scale=relative)
    state = theirs.init(matrices(PARAMS))
    for found, gradient in zip(updates(ours), GRADIENTS, strict=True):
        expected, state = theirs.update(matrices(gradient), state, matrices(PARAMS))
        for name, update in matrices(found).items():
            np.testing.assert_allclose(update, expected[name], rtol=1e-6)


def test_the_first_update_of_a_matrix_is_the_papers():
    """Algorithm 4 at step 1: ``G / sqrt(R C / mean(R))`` with R and C the means of G^2 over columns and rows."""
    ours = Adafactor(1.0, update_clip=None, min_factored=8).make(1)
    gradient = np.asarray(matrices(GRADIENTS[0])["kernel"], np.float64)
    rows, columns = (np.mean(gradient**2, axis=axis, keepdims=True) for axis in (1, 0))
    expected = -gradient / np.sqrt(rows * columns / np.mean(rows))
    found = updates(ours)[0]
    np.testing.assert_allclose(matrices(found)["kernel"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["bias"], -np.sign(GRADIENTS[0]["bias"]), rtol=1e-5)


def test_an_update_has_the_size_of_the_rate_at_most():
    for update in updates(Adafactor(0.01, min_factored=8).make(10)):
        for leaf in jax.tree.leaves(update):
            assert np.sqrt(np.mean(leaf**2)) <= 0.01 * (1 + 1e-5)


def test_weight_decay_is_decoupled_and_scaled_by_the_rate():
    plain, decayed = (updates(Adafactor(0.01, weight_decay=decay).make(10))[0] for decay in (0.0, 0.5))
    np.testing.assert_allclose(
        decayed["kernel"] - plain["kernel"], -0.01 * 0.5 * PARAMS["kernel"], rtol=1e-3, atol=1e-7
    )
    np.testing.assert_array_equal(decayed["bias"], plain["bias"])


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [
        ((12,), (12,)),
        ((7, 5), (7, 5)),
        ((3, 3, 320, 640), (2880, 640)),  # a convolution
        ((1280, 3, 20, 64), (1280, 3840)),  # queries, keys and values of 20 heads
        ((20, 64, 1280), (1280, 1280)),  # the projection behind the heads
    ],
)
def test_a_kernel_is_a_matrix_near_to_a_square(shape, matrix):
    assert matrix_shape(shape) == matrix


def test_its_state_is_a_row_and_a_column_for_each_matrix():
    """The bytes that `jaxdiff.plan` counts for the optimizer: of a kernel of 128 x 128 just 2 x 128 numbers."""
    state = abstract_state(toy.WIDE, Adafactor().make(10), toy.mesh())
    kept = memory.of_step(state, 0, 0, 1)
    counters, placeholders, bias = 3, 3, 128  # the steps of state, factors and schedule; arrays not in use
    assert kept.optimizer == 4 * (2 * 128 + bias + counters + placeholders)
    assert kept.parameters == 4 * (128 * 128 + 128)


def test_it_learns_the_toy_problem():
    adafactor = Adafactor(0.05, min_factored=4).make(600)
    _, history = toy.train(100, mesh=toy.mesh(), optimizer=adafactor)
    assert history[-1]["loss"] < 0.1 * history[0]["loss"]


def test_sharded_it_learns_the_same():
    adafactor = Adafactor(0.01).make(10)
    one, _ = toy.train(4, mesh=toy.mesh(), optimizer=adafactor, task=toy.WIDE)
    many, _ = toy.train(4, mesh=toy.mesh(8, fsdp=8), optimizer=adafactor, task=toy.WIDE)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_its_state_is_laid_out_on_a_mesh_with_a_tensor_axis():
    """The names of the axes of a kernel do not fit its rows and columns."""
    mesh = toy.mesh(8, fsdp=2, tensor=4)
    for leaf in jax.tree.leaves(abstract_state(toy.WIDE, Adafactor().make(10), mesh)):
        leaf.sharding.shard_shape(leaf.shape)


def test_config_round_trip_and_mistakes():
    block = spec(Adafactor, learning_rate=4e-7, relative=True, schedule=spec(Cosine))
    assert build(from_json(to_json(block))) == Adafactor(4e-7, Cosine(), relative=True)
    for field, value in (("update_clip", 0.5), ("decay_power", 1.0), ("min_factored", 0)):
        with pytest.raises(UserError, match=f"{field}="):
            Adafactor(**{field: value})
