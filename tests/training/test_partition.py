"""Parameters that are not trained: constants of the step, in neither optimizer, EMA nor state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdiff.errors import UserError
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW
from jaxdiff.training.partition import split
from jaxdiff.training.state import abstract_state, create_state, init_params, untrained_params
from jaxdiff.training.step import Frozen, jit_train_step, make_train_step
from jaxdiff.trees import merge, paths
from tests.training import toy

PARAMS = {
    "network": {
        "encoder_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
        "head": {"kernel": jnp.ones((2, 2))},
    },
    "conditioner": {"table": jnp.ones((4, 2))},
}
ENCODER = ("encoder_*",)
OPTIMIZER, EMA = AdamW(0.1, weight_decay=0.1, clip_norm=1.0).make(10), Ema()
BATCH = {"x": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)}


@dataclasses.dataclass(frozen=True)
class Line:
    """Two dense layers with named axes, trained to give zeros. With `encoder`, its first layer is a constant."""

    encoder: float | None = None
    frozen: dict = dataclasses.field(default_factory=dict, hash=False)

    def check(self, example, num_classes):
        pass

    def init(self, key):
        names = nn.with_logical_partitioning(nn.initializers.ones, ("channels_in", "channels_out"))
        layers = ("encoder_0", "head") if self.encoder is None else ("head",)
        return {name: {"kernel": names(key, (8, 8))} for name in layers}

    def init_task_state(self):
        return ()

    def draw(self, batch, context, key):
        return batch

    def loss(self, params, context, examples, key, train):
        encoder = jnp.ones((8, 8)) if self.encoder is not None else params["encoder_0"]["kernel"]
        out = examples["x"] @ encoder @ params["head"]["kernel"]
        mean_ema = jnp.mean(context.ema["head"]["kernel"])
        return jnp.mean(out**2, axis=1), {"mean_ema": mean_ema}

    def update_task_state(self, task_state, examples, losses):
        return task_state


def trained(task, mesh, untrained=(), steps=3):
    """The state after a few steps, its expected shapes, and the arrays outside it."""
    state = create_state(task, OPTIMIZER, mesh, 0, untrained=untrained)
    abstract = abstract_state(task, OPTIMIZER, mesh, untrained=untrained)
    frozen = Frozen(params=untrained_params(task, mesh, 0, untrained))
    step = jit_train_step(make_train_step(task, OPTIMIZER, EMA, 0), abstract, mesh, frozen)
    for _ in range(steps):
        state, _ = step(state, BATCH, frozen)
    return state, abstract, frozen


@pytest.mark.parametrize("patterns", [("*", "!network/head"), ("!network/head", "*")])
def test_a_pattern_excludes_what_others_name(patterns):
    trained, untrained = split(PARAMS, patterns)
    assert [*paths(trained)] == ["network/head/kernel"]
    assert merge(trained, untrained).keys() == PARAMS.keys()
    with pytest.raises(
        UserError, match=r"optimizer\.frozen='!network/tail': expected a pattern that names a"
    ):
        split(PARAMS, ("*", "!network/tail"))
    with pytest.raises(UserError, match=r"expected some trained parameters, got none"):
        split(PARAMS, ("*",))


@pytest.mark.parametrize(
    "patterns", [(), ("network/encoder_*", "conditioner"), ("network/encoder_0", "*/table")]
)
def test_merge_is_the_inverse_of_split(patterns):
    parts = split(PARAMS, patterns)
    whole = merge(*parts)
    assert jax.tree.structure(whole) == jax.tree.structure(PARAMS)
    assert len(paths(parts[0])) + len(paths(parts[1])) == 4
    assert (len(paths(parts[0])) == 1) == bool(patterns)


def test_patterns_that_match_nothing_or_everything_are_errors():
    for patterns, message in (
        (("network/encoder_1",), r"frozen='network/encoder_1': expected a pattern that names a parameter"),
        (("network", "*/table"), "expected some trained parameters"),
        (("encoder_0",), "expected a pattern that names a parameter"),
    ):
        with pytest.raises(UserError, match=message):
            split(PARAMS, patterns)


@pytest.mark.parametrize("shape", [{}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_untrained_parameters_are_constants_of_the_step(shape):
    """Other parameters are trained as with constants in place of these: no common clipping or decay."""
    mesh = toy.mesh(8 if shape else 1, **shape)
    state, abstract, frozen = trained(Line(), mesh, ENCODER)
    alone, _, _ = trained(Line(encoder=1.0), mesh)
    np.testing.assert_array_equal(state.params["head"]["kernel"], alone.params["head"]["kernel"])
    np.testing.assert_array_equal(state.ema["head"]["kernel"], alone.ema["head"]["kernel"])
    assert np.all(np.asarray(state.params["head"]["kernel"]) != 1)
    initial = nn.meta.unbox(init_params(Line(), 0))["encoder_0"]["kernel"]
    np.testing.assert_array_equal(frozen.params["encoder_0"]["kernel"], initial)
    assert "encoder" not in str(jax.tree.leaves_with_path(state))
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    same = jax.tree.map(
        lambda leaf, shape: leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim), state, abstract
    )
    assert all(jax.tree.leaves(same))


def test_untrained_parameters_are_an_argument_of_the_step():
    """Large frozen networks must not be constants of the compiled program."""
    mesh = toy.mesh()
    abstract = abstract_state(Line(), OPTIMIZER, mesh, untrained=ENCODER)
    frozen = Frozen(params=untrained_params(Line(), mesh, 0, ENCODER))
    step = jit_train_step(make_train_step(Line(), OPTIMIZER, EMA, 0), abstract, mesh, frozen)
    assert not step.trace(abstract, BATCH, frozen).jaxpr.consts
