"""Muon: orthogonal updates for kernels only, and convergence."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxdiff.config import build, from_json, spec, to_json
from jaxdiff.distributed.partitioning import shardings
from jaxdiff.errors import UserError
from jaxdiff.training.muon import Muon
from jaxdiff.training.optimizer import Cosine, Optimizer

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape).astype(np.float32))


PARAMS = {
    "conv": {"kernel": normal(3, 3, 4, 6), "bias": normal(6)},
    "dense": {"kernel": normal(5, 7), "bias": normal(7)},
    "query_key_value": {"kernel": normal(6, 3, 2, 4), "bias": normal(3, 2, 4)},
    "table": normal(10, 8),
}
GRADIENTS = jax.tree.map(lambda leaf: normal(*leaf.shape), PARAMS)


def update(optimizer, steps=1):
    made = optimizer.make(10) if isinstance(optimizer, Muon) else optimizer
    state = made.init(PARAMS)
    for _ in range(steps):
        updates, state = made.update(GRADIENTS, state, PARAMS)
    return updates


@pytest.mark.slow
@pytest.mark.spread(1)
@pytest.mark.parametrize("name", ["conv", "dense"])
def test_updates_of_kernels_are_orthogonal_and_as_large_as_adams(name):
    # Newton and Schulz's five steps bring singular values to between 0.7 and 1.2 only.
    found = np.asarray(update(Muon(learning_rate=0.1, iterations=5))[name]["kernel"])
    matrix = found.reshape(-1, found.shape[-1])
    values = np.linalg.svd(matrix, compute_uv=False)
    expected = 0.1 * 0.2 * np.sqrt(max(matrix.shape))
    assert values.min() > 0.6 * expected
    assert values.max() < 1.3 * expected
    # Downhill, and in the directions of the gradient.
    gradient = np.asarray(GRADIENTS[name]["kernel"]).reshape(matrix.shape)
    u, _, v = np.linalg.svd(gradient, full_matrices=False)
    assert np.sum(-matrix * (u @ v)) > 0.95 * np.linalg.norm(matrix) * np.linalg.norm(u @ v)


@pytest.mark.slow
def test_each_head_is_a_separate_matrix():
    found = update(Muon(learning_rate=0.1))["query_key_value"]["kernel"]
    tiny = jax.tree.map(lambda leaf: leaf, GRADIENTS)
    tiny["query_key_value"]["kernel"] = tiny["query_key_value"]["kernel"].at[:, 0].multiply(1e-3)
    made = Muon(learning_rate=0.1).make(10)
    other = made.update(tiny, made.init(PARAMS), PARAMS)[0]["query_key_value"]["kernel"]
    np.testing.assert_allclose(
        found, other, rtol=2e-3, atol=1e-4
    )  # queries move, however small their gradient
    for count in range(3):
        for head in range(2):
            values = np.linalg.svd(np.asarray(found)[:, count, head], compute_uv=False)
            assert 0.6 < values.min() / (0.1 * 0.2 * 6**0.5) <= values.max() / (0.1 * 0.2 * 6**0.5) < 1.3


def test_other_parameters_are_updated_by_nadam():
    nadam = optax.chain(optax.clip_by_global_norm(1.0), optax.nadam(0.1))
    found, adam = update(Muon(learning_rate=0.1), 2), update(nadam, 2)
    for path in (("conv", "bias"), ("dense", "bias"), ("table",)):
        one, other = found, adam
        for name in path:
            one, other = one[name], other[name]
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_the_size_of_a_gradient_does_not_matter_to_kernels():
    made = Muon(learning_rate=0.1, clip_norm=None).make(10)
    large = jax.tree.map(lambda leaf: 100 * leaf, GRADIENTS)
    one, other = (made.update(g, made.init(PARAMS), PARAMS)[0] for g in (GRADIENTS, large))
    np.testing.assert_allclose(one["conv"]["kernel"], other["conv"]["kernel"], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_schedule_ends_at_zero():
    last = Muon(learning_rate=0.1, schedule=Cosine()).make(10)
    state = last.init(PARAMS)
    for _ in range(11):
        updates, state = last.update(GRADIENTS, state, PARAMS)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(updates)) < 1e-8


def test_its_state_is_sharded_like_the_parameters():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"))
    boxed = {
        "kernel": nn.LogicallyPartitioned(normal(64, 512), ("channels_in", "channels_out")),
        "bias": normal(512),
    }
    placed = shardings(jax.eval_shape(Muon().make(10).init, boxed), mesh)
    state = nn.unbox(jax.eval_shape(Muon().make(10).init, boxed))
    assert jax.tree.structure(placed) == jax.tree.structure(state)
    specs = {str(leaf.spec) for leaf in jax.tree.leaves(placed)}
    assert any("tensor" in spec for spec in specs)


def test_it_minimises_an_ill_conditioned_quadratic():
    # A quadratic whose curvatures differ by 1e4: the momentum's directions count alike.
    curvature = jnp.asarray(np.geomspace(1e-2, 1e2, 6).astype(np.float32))
    target = normal(6, 6)

    def loss(params):
        return jnp.sum(curvature[:, None] * (params["kernel"] - target) ** 2)

    params = {"kernel": jnp.zeros((6, 6))}
    made = Muon(learning_rate=0.5, schedule=Cosine()).make(200)
    state, first = made.init(params), loss(params)
    step = jax.jit(lambda params, state: made.update(jax.grad(loss)(params), state, params))
    for _ in range(200):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
    assert loss(params) < 1e-3 * first


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"beta": 1.0}, "beta=1.0"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"iterations": 0}, "iterations=0"),
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
    ],
)
def test_options_out_of_range_are_errors(option, message):
    with pytest.raises(UserError, match=message):
        Muon(**option)


def test_it_is_a_config_block():
    block = spec(Muon, learning_rate=2e-3, schedule=spec(Cosine, warmup_steps=50))
    built = build(from_json(to_json(block)))
    assert built == Muon(learning_rate=2e-3, schedule=Cosine(warmup_steps=50))
    assert isinstance(built, Optimizer)
