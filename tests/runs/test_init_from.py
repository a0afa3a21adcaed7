"""Fine-tuning: a run starts as the other model, trains new parameters, and keeps frozen ones."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxdiff import config as configs
from jaxdiff import train
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
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.text_encoder import ByteTransformer
from jaxdiff.models.transformer import TransformerMiddle
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.runs import init_from as starting
from jaxdiff.runs.start import prepare
from jaxdiff.runs.workdir import init_workdir
from jaxdiff.training import step
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.state import abstract_state, create_state
from jaxdiff.training.transfer import InitFrom
from tests.commands import DIGITS, TINY

WIDTH = 32
SIZES = spec(Continuous, size=2, width=WIDTH, frequencies=4, null="learned", drop_rate=0.1)
CLASSES = spec(ClassLabel, num_classes=10, width=WIDTH)


def first_state(experiment, mesh):
    return starting.first_state(experiment, mesh, {})[0]


@pytest.fixture(autouse=True)
def quick():
    """Programs here run once or twice."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


READS_TOKENS = (
    "jaxdiff.models.pixel_attention:PixelAttention(self_attention=False,cross_attention=True,head_dim=8)"
)


def a_config(parts=None, **changes):
    config = command.load_config(DIGITS, [tuple(word.removeprefix("--config.").split("=")) for word in TINY])
    level = spec(Level, width=16, blocks=1)
    config.task.denoiser.network = spec(
        UNet, levels=(level,), out_channels=1, middle=spec(ResidualMiddle, attention=None)
    )
    config.task.denoiser.conditioner.conditions = {"label": CLASSES} | (parts or {})
    for path, text in changes.items():
        command.override(config, path.replace("__", "."), text)
    return config


def build(config, workdir=None, **options):
    experiment = configs.build(config)
    return (
        experiment
        if workdir is None
        else dataclasses.replace(experiment, init_from=InitFrom(str(workdir), **options))
    )


def a_mesh():
    types = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=types, devices=jax.devices()[:1])


def trained(abstract, seed):
    """Parameters without zeros."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype), abstract)


def store(config, folder):
    """A trained run with this config: the parameters of step 3, and the average, also of step 7."""
    experiment, mesh = configs.build(config), a_mesh()
    abstract = abstract_state(experiment.task, experiment.optimizer.make(10), mesh).params
    (folder / "config.json").write_text(configs.to_json(config))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        params, ema = trained(abstract, 0), trained(abstract, 1)
        for number, other in ((3, params), (7, trained(abstract, 2))):
            checkpoints.save(number, step.TrainState(jnp.int32(number), other, ema, opt_state=()))
        checkpoints.wait()
    return experiment, params, ema


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    return folder, *store(a_config({"map": spec(ImageCondition, channels=2)}), folder)


MAP = {"map": spec(ImageCondition, channels=2)}


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_same_model_starts_with_the_learned_parameters(old):
    folder, _, params, ema = old
    state = first_state(build(a_config(MAP), folder), a_mesh())
    same(state.params, ema)
    same(state.ema, ema)
    assert int(state.step) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    first = first_state(build(a_config(MAP), folder, ema=False, step=3), a_mesh())
    same(first.params, params)


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


@pytest.mark.parametrize(
    ("parts", "changes", "options", "message"),
    [
        (MAP, {"task__denoiser__network__levels[0]__width": "24"}, {},
         r"init_from: expected network/\S+ \[.*\] in the other run, got \["),
        (MAP, {"task__denoiser__network__levels[0]__blocks": "2"}, {}, 
         "expected a value in the other run for each parameter, got none for network/decoder_0_block_2/"),
        ({}, {}, {}, r"expected network/stem/kernel \[3, 3, 1, 16\] in the other run, got \[3, 3, 3, 16\]"),
        (MAP | {"label": spec(Continuous, size=1, width=WIDTH)}, {}, {}, "other run alone, got .*parts_label/table"),
        (MAP, {"task__denoiser__parameterization": "jaxdiff.process.prediction:V"}, {}, "the same model at step 0"),
        (MAP, {}, {"step": 5}, "step=5: expected a checkpoint of this step .*choose from: 3, 7"),
        (MAP, {}, {"fresh": ("network/stemm",)}, r"init_from.fresh='network/stemm': expected a pattern"),
    ],
)  # fmt: skip
def test_parameters_that_do_not_fit_are_errors(old, parts, changes, options, message):
    if "kind" in parts:
        pytest.importorskip("flax")
    with pytest.raises(UserError, match=message):
        first_state(build(a_config(parts, **changes), old[0], **options), a_mesh())


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"init_from.workdir=.*expected a folder with config.json"):
        first_state(build(a_config(), tmp_path), a_mesh())
    (tmp_path / "config.json").write_text(configs.to_json(a_config()))
    with pytest.raises(UserError, match="expected a checkpoint"):
        first_state(build(a_config(), tmp_path), a_mesh())


def test_fresh_parameters_start_as_in_a_new_run(old):
    folder, _, _, ema = old
    more = MAP | {"label": spec(ClassLabel, num_classes=12, width=WIDTH)}
    with pytest.raises(
        UserError, match=r"expected \S*parts_label/table \[12, 32\] in the other run, got \[10, 32\]"
    ):
        first_state(build(a_config(more), folder), a_mesh())
    new = build(a_config(more), folder, fresh=("conditioner/parts_label",))
    state, plain = (
        first_state(new, a_mesh()),
        create_state(new.task, new.optimizer.make(9), a_mesh(), 0),
    )
    same(state.params["conditioner"]["parts_label"], plain.params["conditioner"]["parts_label"])
    same(state.params["network"], ema["network"])
    without = build(a_config(MAP), folder, fresh=("conditioner/parts_label/*",))
    without = dataclasses.replace(without, task=dataclasses.replace(
        without.task, denoiser=without.task.denoiser.clone(
            conditioner=without.task.denoiser.conditioner.clone(
                conditions={"map": without.task.denoiser.conditioner.conditions["map"]}))))  # fmt: skip
    assert "parts_label" not in first_state(without, a_mesh()).params["conditioner"]


def test_a_run_continues_without_its_initial_run(old, tmp_path):
    folder, _, _, ema = old
    experiment, mesh = build(a_config(MAP), folder), a_mesh()
    prepare(experiment, tmp_path, mesh)
    prepare(dataclasses.replace(experiment, init_from=InitFrom("/nowhere")), tmp_path, mesh)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest() == 0
        optimizer = experiment.optimizer.make(experiment.steps)
        extra_emas = len(experiment.ema.extra_emas())
        state = checkpoints.restore(0, abstract_state(experiment.task, optimizer, mesh, extra_emas))
    same(state.params, ema)
    assert int(state.step) == 0
    prepare(dataclasses.replace(experiment, init_from=None), tmp_path / "none", mesh)
    assert not (tmp_path / "none").exists()


def test_a_run_without_init_from_continues_only_without_it(tmp_path):
    config = a_config()
    stored = json.loads(configs.to_json(config))
    del stored["init_from"], stored["optimizer"]["frozen"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    init_workdir(config, str(tmp_path))
    command.override(config, "init_from", "jaxdiff.training.transfer:InitFrom(workdir='x')")
    with pytest.raises(UserError, match=r"got a run with another config .*init_from"):
        init_workdir(config, str(tmp_path))


def test_a_flag_of_the_command_is_a_field_of_the_config():
    assert train.init_from(None) == []
    config = command.load_config(DIGITS, train.init_from("runs/base:500"))
    assert configs.build(config).init_from == InitFrom("runs/base", step=500)
    assert configs.build(command.load_config(DIGITS, train.init_from("a b"))).init_from == InitFrom("a b")


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
