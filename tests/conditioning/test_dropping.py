"""Properties of every kind of condition: nothing of a dropped one reaches the output, and a shown one matters."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.class_token import ClassToken
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.embedding import EmbeddedSequence
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.label import LabelCondition
from jaxdiff.conditioning.magnitude import MagnitudeClassLabel
from jaxdiff.conditioning.noisy import NoiseAugmented
from jaxdiff.conditioning.text import Text
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.data.text import ByteTokenizer
from jaxdiff.denoiser import Denoiser
from jaxdiff.generation.inputs import fields as given_fields
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.text_encoder import ByteTransformer
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.process.prediction import Velocity
from jaxdiff.process.time_sampling import Uniform
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.training.step import Context

SHAPE, BATCH, WIDTH, FEATURES, TOKEN = (4, 4, 1), 3, 16, 4, 8
LEARNED = {"null": "learned", "drop_rate": 0.1}


def noise():
    return NoiseLevel(WIDTH, frequencies=FEATURES // 2)


def encoder():
    return ByteTransformer(TOKEN, layers=1, head_dim=4)


CONDITIONS = {
    "label": ClassLabel(5, WIDTH),
    "label_zero": ClassLabel(5, WIDTH, null="zero", bias=True, scale=2.0),
    "label_mixed": ClassLabel(5, WIDTH),
    "label_features": ClassLabel(5, FEATURES, before_mapping=True),
    "label_magnitude": MagnitudeClassLabel(5, WIDTH, drop_rate=0.1),
    "label_token": ClassToken(5, TOKEN),
    "label_token_zero": ClassToken(5, TOKEN, null="zero"),
    "numbers": Continuous(2, WIDTH, frequencies=3, scale=0.7, **LEARNED),
    "numbers_zero": Continuous(None, WIDTH, null="zero", drop_rate=0.1),
    "numbers_features": Continuous(2, FEATURES, before_mapping=True, **LEARNED),
    "text": Text(ByteTokenizer(6), encoder(), vector_width=WIDTH),
    "text_zero": Text(ByteTokenizer(6), encoder(), null="zero"),
    "text_empty": Text(ByteTokenizer(6), encoder(), vector_width=WIDTH, null="empty"),
    "sequence": EmbeddedSequence(6, 5, TOKEN, vector_width=WIDTH),
    "sequence_zero": EmbeddedSequence(6, 5, TOKEN, null="zero"),
    "photo": ImageCondition(2, factor=2.0, **LEARNED),
    "photo_zero": ImageCondition(1, method="bicubic", factor=0.5, null="zero", drop_rate=0.1),
    "noisy": NoiseAugmented(ImageCondition(1, **LEARNED), noise(), RectifiedFlow()),
    "noisy_numbers": NoiseAugmented(Continuous(7, WIDTH, **LEARNED), noise(), RectifiedFlow()),
}
NOISY = [name for name, part in CONDITIONS.items() if isinstance(part, NoiseAugmented)]
ALWAYS = {
    "map": ImageCondition(1),
    "size": Continuous(None, WIDTH, null="none"),
    "noisy_map": NoiseAugmented(ImageCondition(1), noise(), RectifiedFlow()),
}
CROSSED = PixelAttention(False, True, head_dim=8)
NETWORK = UNet((Level(8, blocks=0, attention=CROSSED),), out_channels=1, middle=ResidualMiddle(CROSSED))


def a_denoiser(parts):
    return Denoiser(NETWORK, Conditioner(noise(), parts), RectifiedFlow(), Velocity())


DENOISER = a_denoiser({**CONDITIONS, **ALWAYS})
CONDITIONER = DENOISER.conditioner
X = jax.random.normal(jax.random.key(0), (BATCH, *SHAPE))
T = jnp.array([0.2, 0.5, 0.9])


def some(part, seed):
    """Values of one kind, different in every example and for every seed."""
    rng = np.random.default_rng(seed)
    if isinstance(part, NoiseAugmented):
        return {
            "value": some(part.part, seed),
            "level": jnp.asarray((np.arange(3) + 1 + 3 * seed) / 10, jnp.float32),
        }
    if isinstance(part, Text):
        return jnp.asarray(part.read([["a", "xy", "three"], ["", "xyz", "\u4e09"]][seed]))
    if isinstance(part, LabelCondition):
        return jnp.asarray([[0, 4, 2], [3, 1, 0]][seed])
    shape = jax.eval_shape(lambda: part.example(BATCH, SHAPE)).shape
    found = rng.normal(size=shape)
    if isinstance(part, EmbeddedSequence):  # of other lengths
        found *= np.arange(part.length)[None, :, None] < np.array([[5, 3, 1], [2, 4, 3]][seed])[:, None, None]
    return jnp.asarray(found, jnp.float32)


@functools.cache
def values(seed=0):
    found = {name: some(part, seed) for name, part in CONDITIONER.conditions.items()}
    rows = [[[0.5, 0.5, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0.2, 0.8, 0, 0]], np.eye(5)[[1, 2, 4]]]
    return {**found, "label_mixed": jnp.asarray(rows[seed], jnp.float32)}


def drops(*names):
    return {name: jnp.full(BATCH, name in names) for name in CONDITIONER.conditions}


@functools.cache
def parameters(denoiser=DENOISER):
    """No parameter is zero: zeros would hide the effect of everything before them."""
    tree = jax.eval_shape(
        functools.partial(denoiser.init, train=False), jax.random.key(0), X, T, values(), drops()
    )
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), nn.meta.unbox(tree)["params"]
    )


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def _answer(params, given, drop):
    return DENOISER.apply({"params": params}, X, T, given, drop, train=False)


def answer(given, drop):
    found = np.asarray(_answer(parameters(), given, drop))
    assert np.all(np.isfinite(found))
    return found


def change(one, other):
    """The largest difference in each example."""
    return np.abs(one - other).max(axis=(1, 2, 3))


def test_the_checks_accept_these_values():
    CONDITIONER.check(values(0))
    CONDITIONER.check(values(1))


@pytest.mark.spread(5)
@pytest.mark.parametrize("name", CONDITIONS)
def test_nothing_of_a_dropped_condition_reaches_the_output(name):
    other = {**values(), name: values(1)[name]}
    dropped = answer(values(), drops(name))
    np.testing.assert_array_equal(answer(other, drops(name)), dropped)
    assert np.all(change(dropped, answer(values(), drops())) > 1e-4), "shown and dropped differ"


@pytest.mark.parametrize("name", CONDITIONS)
def test_only_the_examples_that_are_dropped_lose_their_condition(name):
    drop = {**drops(), name: jnp.array([False, True, False])}
    found = answer(values(), drop)
    np.testing.assert_array_equal(found[1], answer(values(), drops(name))[1])
    np.testing.assert_array_equal(found[[0, 2]], answer(values(), drops())[[0, 2]])


@pytest.mark.spread(5)
@pytest.mark.parametrize("name", CONDITIONS)
def test_none_is_the_dropped_condition(name):
    """None becomes values that have no effect."""
    given = {**jax.tree.map(np.asarray, values()), name: None}
    rows, absent, n = given_fields([CONDITIONER], BATCH, given, SHAPE)
    assert (n, [key for key, gone in absent.items() if gone.all()]) == (BATCH, [name])
    rows = jax.tree.map(jnp.asarray, rows)
    found = answer(rows, {key: jnp.asarray(gone) for key, gone in absent.items()})
    np.testing.assert_array_equal(found, answer(values(), drops(name)))


@pytest.mark.parametrize("name", [*CONDITIONS, *ALWAYS])
def test_each_example_sees_its_own_values(name):
    """Permuting the values among the examples changes every output."""
    moved = {**values(), name: jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), values()[name])}
    assert np.all(change(answer(moved, drops()), answer(values(), drops())) > 1e-4)


@pytest.mark.parametrize("name", ALWAYS)
def test_a_condition_without_a_null_is_always_shown(name):
    everything, plain = answer(values(), drops(*ALWAYS, *CONDITIONS)), answer(values(), drops(*CONDITIONS))
    np.testing.assert_array_equal(everything, plain)
    other = {**values(), name: values(1)[name]}
    assert np.all(change(answer(other, drops(*ALWAYS, *CONDITIONS)), plain) > 1e-4)


@pytest.mark.parametrize("name", [*NOISY, "noisy_map"])
def test_the_network_sees_the_level_unless_the_condition_is_dropped(name):
    other = {**values(), name: {**values()[name], "level": values(1)[name]["level"]}}
    assert np.all(change(answer(other, drops()), answer(values(), drops())) > 1e-4)
    same = np.array_equal(answer(other, drops(name)), answer(values(), drops(name)))
    assert same == (name != "noisy_map"), "which is never dropped"


class Reader(nn.Module):
    """Reads every slot; compiles quickly, with its gradient."""

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        shown = embeddings.tokens.mask[..., None]
        read = jnp.sum(jnp.where(shown, embeddings.tokens.features, 0.0), axis=1)
        hidden = jnp.sin(nn.Dense(8)(jnp.concatenate([embeddings.vector, read], axis=-1)))
        return (
            nn.Dense(1)(jnp.concatenate([x, embeddings.spatial], axis=-1))
            * nn.Dense(1)(hidden)[:, None, None]
        )


TASK = DenoisingTask(DENOISER.clone(network=Reader()), Uniform(), SHAPE)


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def learn(params, examples):
    """The loss, and its gradient to all parameters."""
    key = jax.random.key(3)
    return jax.value_and_grad(
        lambda params: jnp.mean(TASK.loss(params, Context(), examples, key, train=True)[0])
    )(params)


@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def _draw(task, batch):
    return task.draw(batch, Context(), jax.random.key(2, impl="rbg"))


def drawn(rate, seed):
    """The draws of training for these values, at the given drop rate."""

    def dropping(part):
        inner = {"part": dropping(part.part)} if isinstance(part, NoiseAugmented) else {"drop_rate": rate}
        return part.clone(**inner)

    parts = {name: dropping(part) for name, part in CONDITIONS.items()}
    task = DenoisingTask(a_denoiser({**parts, **ALWAYS}), Uniform(), SHAPE)
    given = values(seed) | {name: values()[name] for name in ALWAYS}
    given = {name: value["value"] if isinstance(value, dict) else value for name, value in given.items()}
    examples = _draw(task, {"image": jnp.tanh(X), **given})
    assert all(np.all(examples["drop"][name] == (rate > 0)) for name in CONDITIONS)
    assert not any(np.any(examples["drop"][name]) for name in ALWAYS)
    return examples


@pytest.mark.slow
@pytest.mark.parametrize("dropped", [False, True])
def test_gradients_come_from_shown_values_and_never_from_dropped_ones(dropped):
    rate = 1 - 1e-9 if dropped else 0.0  # in float32 that is always
    one, two = (learn(parameters(TASK.denoiser), drawn(rate, seed)) for seed in (0, 1))
    if dropped:
        jax.tree.map(np.testing.assert_array_equal, one, two)
    assert dropped or one[0] != two[0]
    for name in CONDITIONS:
        for path, leaf in jax.tree.leaves_with_path(one[1]["conditioner"].get(f"parts_{name}", {})):
            # Common to null and values: a bias, the layers after the tokens, and the encoder of an empty text.
            common = name == "text_empty" or (name, path[0].key) in AFTER_THE_NULL
            learned = common or (path[-1].key == "null") == dropped
            assert bool(np.any(leaf != 0)) == learned, (name, jax.tree_util.keystr(path))


AFTER_THE_NULL = [("label_zero", "bias"), ("sequence", "dense_0"), ("sequence", "dense_1")]
