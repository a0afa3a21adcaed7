"""The conditioner: what reaches the network, what is dropped, and which inputs raise an error."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import config as configs
from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.condition import Condition
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.magnitude import MagnitudeNoiseLevel
from jaxdiff.conditioning.noisy import NoiseAugmented
from jaxdiff.conditioning.nulls import Null
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel, VectorMlp, fourier_features
from jaxdiff.config import spec
from jaxdiff.embeddings import Embeddings, Tokens, merge
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.labels import LogSigma
from jaxdiff.process.schedule import Cosine

LABELS = jnp.array([0, 3, 9])
NOISE = jnp.array([0.0, 250.0, 999.0])
CONDITIONER = Conditioner(
    NoiseLevel(16), {"label": ClassLabel(10, 16, drop_rate=0.25), "style": ClassLabel(4, 16, drop_rate=0.0)}
)
FIELDS = {"label": LABELS, "style": jnp.array([1, 2, 3])}


@functools.cache
def parameters():
    init = jax.jit(CONDITIONER.init)
    return nn.meta.unbox(init(jax.random.key(0), NOISE, FIELDS, CONDITIONER.none_dropped(3)))["params"]


def vector(fields=FIELDS, drop=None, noise=NOISE):
    drop = CONDITIONER.none_dropped(3) if drop is None else drop
    return CONDITIONER.apply({"params": parameters()}, noise, fields, drop).vector


def test_vectors_add_up():
    params = parameters()
    noise = NoiseLevel(16).apply({"params": params["noise"]}, NOISE).vector
    expected = (
        noise + params["parts_label"]["table"][LABELS] + params["parts_style"]["table"][FIELDS["style"]]
    )
    np.testing.assert_allclose(vector(), expected, atol=1e-6)


def test_nothing_of_a_dropped_label_remains():
    dropped = dict.fromkeys(CONDITIONER.conditions, jnp.ones(3, bool))
    other = {"label": LABELS[::-1], "style": jnp.array([0, 0, 0])}
    np.testing.assert_array_equal(vector(drop=dropped), vector(other, dropped))
    params = parameters()
    noise = NoiseLevel(16).apply({"params": params["noise"]}, NOISE).vector
    null = params["parts_label"]["null"] + params["parts_style"]["null"]
    np.testing.assert_allclose(vector(drop=dropped), noise + null, atol=1e-6)


def test_one_condition_of_one_example_is_dropped():
    drop = CONDITIONER.none_dropped(3) | {"label": jnp.array([False, True, False])}
    changed = vector(drop=drop) != vector()
    assert not jnp.any(changed[jnp.array([0, 2])])
    assert jnp.any(changed[1])


def test_drop_masks_have_the_drop_rates():
    drops = CONDITIONER.draw_drops(jax.random.key(0), 40_000)
    assert abs(drops["label"].mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 40_000)
    assert not jnp.any(drops["style"])


def test_conditions_are_dropped_independently():
    both = Conditioner(NoiseLevel(16), {name: ClassLabel(10, 16, drop_rate=0.5) for name in "ab"})
    drops = both.draw_drops(jax.random.key(0), 40_000)
    assert abs((drops["a"] & drops["b"]).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 40_000)


def test_the_order_of_conditions_has_no_meaning():
    turned = Conditioner(CONDITIONER.noise, dict(reversed(list(CONDITIONER.conditions.items()))))
    assert turned == CONDITIONER
    assert hash(turned) == hash(CONDITIONER)
    for name, drops in CONDITIONER.draw_drops(jax.random.key(3), 100).items():
        np.testing.assert_array_equal(turned.draw_drops(jax.random.key(3), 100)[name], drops)


def test_an_unconditional_model():
    alone = Conditioner(NoiseLevel(16))
    params = jax.jit(alone.init)(jax.random.key(0), NOISE, {}, alone.none_dropped(3))
    assert alone.draw_drops(jax.random.key(0), 3) == alone.example(3) == {}
    assert alone.apply(params, NOISE, {}, {}).vector.shape == (3, 16)


def test_missing_and_unknown_conditions():
    none = CONDITIONER.none_dropped(3)
    with pytest.raises(
        UserError, match="style=: expected a value for this condition of the model, got none in fields"
    ):
        vector({"label": LABELS}, none)
    with pytest.raises(
        UserError,
        match=r"conditions='text': expected a condition of the model, .* Fix: choose from label, style",
    ):
        vector(FIELDS | {"text": LABELS}, none)
    with pytest.raises(
        UserError, match="label=: expected a value for this condition of the model, got none in drop"
    ):
        vector(FIELDS, {"style": none["style"]})


@pytest.mark.parametrize(
    "part", [Continuous(2, 8, before_mapping=True), ClassLabel(4, 8, before_mapping=True)]
)
def test_features_need_a_noise_module_that_takes_them(part):
    model = Conditioner(MagnitudeNoiseLevel(16, 8), {"own": part})
    with pytest.raises(
        UserError, match="before_mapping=True: expected a noise module that takes features, got Magnitude"
    ):
        model.init(jax.random.key(0), NOISE, model.example(3), model.none_dropped(3))


class Pooled(Condition):
    """A pooled vector of a frozen encoder, unchanged."""

    size: int
    null: Null = "zero"
    drop_rate: float = 0.1

    @nn.compact
    def __call__(self, values, drop):
        return Embeddings(vector=nulls.replace_dropped(self, self.null, values, drop, nn.initializers.zeros))

    @nn.nowrap
    def example(self, batch, data_shape=None):
        return jnp.zeros((batch, self.size))


def test_concatenated_vectors_are_mapped_as_in_sdxl():
    """``emb = time + MLP([pooled text, fourier(sizes)])``, with Fourier features of each size (Podell et al. 2023)."""
    conditions = {
        "text": Pooled(5),
        "size": Continuous(2, None, frequencies=3, null="none"),
        "label": ClassLabel(4, 16),
    }
    model = Conditioner(NoiseLevel(16), conditions, concatenated=("text", "size"), mapping=VectorMlp(16))
    rng = np.random.default_rng(0)
    pooled, sizes = rng.normal(size=(3, 5)).astype(np.float32), np.float32([[64, 32], [512, 768], [0, 7]])
    fields = {"text": jnp.asarray(pooled), "size": jnp.asarray(sizes), "label": jnp.array([0, 1, 3])}
    drop = model.none_dropped(3) | {"text": jnp.array([False, True, False])}
    params = nn.meta.unbox(model.init(jax.random.key(0), NOISE, fields, drop))["params"]
    assert set(params) == {"noise", "mapping", "parts_label"}

    angles = sizes[:, :, None] * 10_000 ** (-np.arange(3) / 3)
    fourier = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1).reshape(3, 12)
    pooled[1] = 0
    first, second = (jax.tree.map(np.asarray, params["mapping"][f"dense_{i}"]) for i in range(2))
    hidden = np.concatenate([pooled, fourier], axis=-1) @ first["kernel"] + first["bias"]
    hidden = hidden / (1 + np.exp(-hidden))
    added = hidden @ second["kernel"] + second["bias"]
    noise = NoiseLevel(16).apply({"params": params["noise"]}, NOISE).vector
    expected = noise + added + params["parts_label"]["table"][fields["label"]]
    found = model.apply({"params": params}, NOISE, fields, drop).vector
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concatenated": ("text",)}, "mapping=None: expected a module together with concatenated"),
        ({"mapping": VectorMlp(8)}, "expected a module together with concatenated"),
        (
            {"concatenated": ("size",), "mapping": VectorMlp(8)},
            "concatenated='size': .*choose from text, low",
        ),
    ],
)
def test_invalid_conditioners_raise(options, message):
    conditions = {"text": Pooled(5), "low": ImageCondition(1)}
    with pytest.raises(UserError, match=message):
        Conditioner(NoiseLevel(16), **{"conditions": conditions} | options)


def test_only_conditions_with_a_vector_can_be_concatenated():
    model = Conditioner(
        NoiseLevel(16), {"low": ImageCondition(1)}, concatenated=("low",), mapping=VectorMlp(16)
    )
    with pytest.raises(UserError, match="concatenated='low': expected a condition with a vector"):
        model.init(jax.random.key(0), NOISE, model.example(3, (4, 4, 1)), model.none_dropped(3))


def test_conditions_are_found_by_their_kind():
    assert CONDITIONER.with_flag("label") == ("label", "style")
    assert CONDITIONER.only("label") is None
    one = Conditioner(NoiseLevel(16), {"digit": ClassLabel(10, 16), "size": Continuous(2, 16)})
    assert one.only("label") == "digit"
    assert one.only("text") is None


@pytest.mark.parametrize("wrong", [-1, 10, 255])
def test_a_label_out_of_range_raises(wrong):
    with pytest.raises(UserError, match=f"label={wrong}: expected a class from 0 to 9"):
        CONDITIONER.check({"label": np.array([3, wrong, 1])})


def test_labels_are_integers():
    with pytest.raises(UserError, match=r"style=1.5: expected an integer class, got float64"):
        CONDITIONER.check({"style": np.array([1.5, 2.0])})
    CONDITIONER.check({"label": np.array([0, 9]), "style": [0, 3]})


@pytest.mark.parametrize("wrong", [-1, 10])
def test_a_label_out_of_range_on_the_device_is_never_another_class(wrong):
    embedded = vector(FIELDS | {"label": jnp.array([0, wrong, 9])})
    assert jnp.all(jnp.isnan(embedded[1]))
    assert jnp.all(jnp.isfinite(embedded[jnp.array([0, 2])]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassLabel(0, 16), "num_classes=0"),
        (lambda: ClassLabel(10, 16, drop_rate=1.0), "drop_rate=1.0"),
        (lambda: NoiseLevel(4), "frequencies=None"),
        (lambda: NoiseLevel(0), "width=0"),
    ],
)
def test_invalid_fields_raise(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_config_describes_every_condition():
    low = spec(
        NoiseAugmented,
        part=spec(ImageCondition, channels=3, factor=4, method="bicubic"),
        noise=spec(NoiseLevel, width=16, random_scale=16),
        process=spec(VariancePreserving, schedule=spec(Cosine)),
        label=spec(LogSigma),
    )
    parts = {
        "augment": spec(Continuous, size=9, width=4, default=0.0, before_mapping=True),
        "label": spec(ClassLabel, num_classes=10, width=16, null="zero"),
        "low": low,
        "size": spec(Continuous, size=None, width=16, default=(0.5), frequencies=8),
    }
    config = spec(Conditioner, noise=spec(NoiseLevel, width=16), conditions=parts)
    model = configs.build(config)
    assert model == configs.build(configs.from_json(configs.to_json(config)), packages=("jaxdiff",))
    assert hash(model) == hash(configs.build(config))
    fields = model.example(2, (16, 16, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), NOISE[:2], fields, model.none_dropped(2))
    shapes = jax.tree.map(jnp.shape, nn.meta.unbox(variables)["params"])
    assert set(shapes) == {"noise", "parts_augment", "parts_label", "parts_low", "parts_size"}
    assert shapes["parts_low"]["noise"]["frequencies"] == (2,)
    model.check(jax.tree.map(np.asarray, fields))


def test_fourier_features_match_the_papers():
    label, half = 37.0, 4
    adm = [label * 10_000 ** (-i / half) for i in range(half)]
    np.testing.assert_allclose(
        fourier_features(jnp.array([label]), half)[0], np.concatenate([np.cos(adm), np.sin(adm)]), atol=1e-5
    )
    ddpm = [label * 10_000 ** (-i / (half - 1)) for i in range(half)]
    np.testing.assert_allclose(
        fourier_features(jnp.array([label]), half, endpoint=True, sine_first=True)[0],
        np.concatenate([np.sin(ddpm), np.cos(ddpm)]),
        atol=1e-5,
    )


def test_tokens_and_channels_are_concatenated():
    tokens = [Tokens(jnp.full((1, n, 2), float(n)), jnp.full((1, n), n == 2)) for n in (2, 3)]
    images = [jnp.full((1, 4, 4, n), float(n)) for n in (1, 2)]
    merged = merge(
        [Embeddings(tokens=tokens[0], spatial=images[0]), Embeddings(tokens=tokens[1], spatial=images[1])]
    )
    assert merged.vector is None
    assert merged.tokens.mask.tolist() == [[True, True, False, False, False]]
    assert merged.tokens.features[0, :, 0].tolist() == [2, 2, 3, 3, 3]
    assert merged.spatial[0, 0, 0].tolist() == [1, 2, 2]


def test_embeddings_of_different_sizes_cannot_be_merged():
    with pytest.raises(UserError, match=r"width=\[4, 5\]"):
        merge([Embeddings(vector=jnp.zeros((1, 4))), Embeddings(vector=jnp.zeros((1, 5)))])
    with pytest.raises(UserError, match="image_shape="):
        merge([Embeddings(spatial=jnp.zeros((1, 4, 4, 1))), Embeddings(spatial=jnp.zeros((1, 8, 8, 1)))])
