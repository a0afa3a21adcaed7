"""Fine-tuning with more conditions: they have no effect at first, and are trained, or are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxdiff.cli import app as command
from jaxdiff.conditioning.condition import Condition
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.embedding import EmbeddedSequence
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.noisy import NoiseAugmented
from jaxdiff.conditioning.text import Text
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.config import spec
from jaxdiff.data.text import ByteTokenizer
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError
from jaxdiff.models.text_encoder import ByteTransformer
from jaxdiff.models.transformer import TransformerMiddle
from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.runs import init_from as starting
from jaxdiff.training import step
from tests.runs.fine_tuning import MAP, READS_TOKENS, WIDTH, a_config, a_mesh, build, first_state, store

SIZES = spec(Continuous, size=2, width=WIDTH, frequencies=4, null="learned", drop_rate=0.1)


def answers(experiment, params, values, drop):
    denoiser = experiment.task.denoiser
    x = jax.random.normal(jax.random.key(4), (3, *experiment.task.image_shape))
    parts = denoiser.conditioner.conditions
    fields = {name: values[name] for name in parts}
    drops = {name: jnp.asarray(drop) for name in parts}
    call = jax.jit(
        lambda params: denoiser.apply(
            {"params": params}, x, jnp.array([0.1, 0.5, 0.9]), fields, drops, train=False
        )
    )
    return np.asarray(call(params))


@pytest.mark.slow
def test_new_conditions_have_no_effect_at_first_and_are_trainable(old):
    """Their names sort before and after the old one: old channels keep their weights at any position."""
    folder, experiment, _, ema = old
    noisy = spec(NoiseAugmented, part=spec(ImageCondition, channels=1), noise=spec(NoiseLevel, width=WIDTH),
                 process=spec(RectifiedFlow))  # fmt: skip
    encoder = spec(ByteTransformer, width=16, layers=1, head_dim=8)
    text = spec(Text, tokenizer=spec(ByteTokenizer, length=12), encoder=encoder, vector_width=WIDTH)
    new_parts = {"a_map": spec(ImageCondition, channels=3, null="learned"), "z_noisy": noisy, "crop": SIZES,
                 "kind": spec(ClassLabel, num_classes=4, width=WIDTH, bias=True), "text": text}  # fmt: skip
    config = (
        a_config(MAP | new_parts, task__denoiser__network__levels__=None)
        if False
        else a_config(MAP | new_parts)
    )
    command.override(config, "task.denoiser.network.levels[0].attention", READS_TOKENS)
    command.override(config, "task.denoiser.network.middle.attention", READS_TOKENS)
    new = build(config, folder)
    state = first_state(new, a_mesh())
    rng = np.random.default_rng(1)
    images = {
        name: rng.normal(size=(3, 8, 8, channels)).astype(np.float32)
        for name, channels in (("map", 2), ("a_map", 3), ("z_noisy", 1))
    }
    values = {
        "label": np.array([1, 2, 3]),
        "map": images["map"],
        "a_map": images["a_map"],
        "kind": np.array([0, 3, 1]),
        "z_noisy": {"value": images["z_noisy"], "level": np.float32([0.1, 0.5, 1.0])},
        "crop": rng.normal(size=(3, 2)).astype(np.float32),
        "text": new.task.denoiser.conditioner.read("text", ["a", "red", "three"]),
    }
    values = jax.tree.map(jnp.asarray, values)
    drop = [False, True, False]
    expected = answers(experiment, ema, values, drop)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(answers(new, state.params, values, drop), expected, atol=2e-5)

    optimizer = new.optimizer.make(10)
    batch = {"image": jnp.asarray(images["a_map"][..., :1]), **values, "z_noisy": values["z_noisy"]["value"]}
    draws = new.task.draw(batch, step.Context(), jax.random.key(0))

    @jax.jit
    def move(params, opt_state):
        grads = jax.grad(
            lambda tree: jnp.mean(new.task.loss(tree, step.Context(), draws, jax.random.key(1), True)[0])
        )(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    moved, _ = move(*move(state.params, state.opt_state))
    for name in new_parts:
        part = "conditioner", f"parts_{name}"
        if name != "a_map":  # which has a null alone, and that is never shown if nothing is dropped
            first, then = (tree[part[0]][part[1]] for tree in (state.params, moved))
            assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (first, then)), strict=True)), (
                name
            )
    kernel = moved["network"]["stem"]["kernel"]
    assert kernel.shape[2] == 1 + 3 + 2 + 1
    assert np.all(np.abs(kernel).max(axis=(0, 1, 3)) > 0)
    np.testing.assert_array_equal(
        state.params["network"]["stem"]["kernel"][:, :, 4:6], ema["network"]["stem"]["kernel"][:, :, 1:3]
    )


SEQUENCE = spec(EmbeddedSequence, size=6, length=5, width=16, vector_width=WIDTH)


@pytest.mark.slow
def test_conditions_before_the_mapping_have_no_effect_at_first(tmp_path):
    """The other slots are tested above, with tokens for the levels."""

    def with_transformer(parts, cross_attention):
        config = a_config(parts)
        config.task.denoiser.network.middle = spec(
            TransformerMiddle, width=16, blocks=1, head_dim=8, cross_attention=cross_attention
        )
        command.override(config, "task.denoiser.network.levels[0].blocks", "0")
        return config

    experiment, _, ema = store(with_transformer({}, False), tmp_path)
    features = spec(Continuous, size=9, width=2 * (WIDTH // 8), default=0.0, before_mapping=True)
    new = build(with_transformer({"augment": features, "text": SEQUENCE}, True), tmp_path)
    state = first_state(new, a_mesh())
    rng = np.random.default_rng(3)
    values = {
        "label": jnp.array([1, 2, 3]),
        "augment": jnp.asarray(rng.normal(size=(3, 9)), jnp.float32),
        "text": jnp.asarray(rng.normal(size=(3, 5, 6)), jnp.float32),
    }
    expected = answers(experiment, ema, values, [False, True, False])
    assert np.abs(expected).max() > 0.1
    found = answers(new, state.params, values, [False, True, False])
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.slow
def test_additional_tokens_that_change_the_model_are_an_error(tmp_path):
    """Softmax normalises over all tokens, so new tokens change the weights of old ones."""

    def a_reader(*names):
        config = a_config(dict.fromkeys(names, SEQUENCE))
        for field, value in (("attention", READS_TOKENS), ("blocks", "0")):
            command.override(config, f"task.denoiser.network.levels[0].{field}", value)
        return config

    store(a_reader("text"), tmp_path)
    with pytest.raises(UserError, match="expected the same model at step 0"):
        first_state(build(a_reader("text", "tags"), tmp_path), a_mesh())


class Pair(Condition):
    """Two numbers that are added, and a constant."""

    constant: float = 0.0

    @nn.compact
    def __call__(self, values, drop):
        a, b = (self.param(name, nn.initializers.ones, ()) for name in "ab")
        return Embeddings(vector=jnp.ones((len(drop), 1)) * (a + b + self.constant))

    @nn.nowrap
    def example(self, batch, data_shape=None):
        return jnp.zeros(batch)


def test_a_condition_without_a_last_layer_is_zeroed_entirely_or_refused():
    experiment = build(a_config())
    denoiser = experiment.task.denoiser
    more = denoiser.clone(conditioner=denoiser.conditioner.clone(conditions={"pair": Pair()}))
    found = starting.zero_initialised_in(more, "pair", (8, 8, 1))
    assert sorted(found) == ["conditioner/parts_pair/a", "conditioner/parts_pair/b"]
    loud = denoiser.clone(conditioner=denoiser.conditioner.clone(conditions={"pair": Pair(1.0)}))
    with pytest.raises(
        UserError, match=r"expected a new condition without effect at step 0, got pair \(Pair\)"
    ):
        starting.zero_initialised_in(loud, "pair", (8, 8, 1))
