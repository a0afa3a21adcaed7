"""Conditions: what reaches the network, what is dropped, what is refused."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import config as configs
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.magnitude import MagnitudeNoiseLevel
from jaxdiff.conditioning.noisy import NoiseAugmented
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel, sinusoids
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
    want = noise + params["parts_label"]["table"][LABELS] + params["parts_style"]["table"][FIELDS["style"]]
    np.testing.assert_allclose(vector(), want, atol=1e-6)


def test_nothing_of_a_dropped_label_is_left():
    dropped = CONDITIONER.all_dropped(3)
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


def test_drops_have_the_rates_that_were_asked_for():
    drops = CONDITIONER.draw_drops(jax.random.key(0), 40_000)
    assert abs(drops["label"].mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 40_000)
    assert not jnp.any(drops["style"])


def test_conditions_are_dropped_independently():
    both = Conditioner(NoiseLevel(16), {name: ClassLabel(10, 16, drop_rate=0.5) for name in "ab"})
    drops = both.draw_drops(jax.random.key(0), 40_000)
    assert abs((drops["a"] & drops["b"]).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 40_000)


def test_the_order_of_the_parts_has_no_meaning():
    turned = Conditioner(CONDITIONER.noise, dict(reversed(list(CONDITIONER.conditions.items()))))
    assert turned == CONDITIONER
    assert hash(turned) == hash(CONDITIONER)
    for name, drops in CONDITIONER.draw_drops(jax.random.key(3), 100).items():
        np.testing.assert_array_equal(turned.draw_drops(jax.random.key(3), 100)[name], drops)


def test_a_model_without_conditions():
    alone = Conditioner(NoiseLevel(16))
    params = jax.jit(alone.init)(jax.random.key(0), NOISE, {}, alone.none_dropped(3))
    assert alone.draw_drops(jax.random.key(0), 3) == alone.example(3) == {}
    assert alone.apply(params, NOISE, {}, {}).vector.shape == (3, 16)


def test_missing_and_unknown_conditions():
    none = CONDITIONER.none_dropped(3)
    with pytest.raises(UserError, match="style=: the model has this condition, fields lacks it"):
        vector({"label": LABELS}, none)
    with pytest.raises(UserError, match=r"text=: the model has no such condition.*label, style"):
        vector(FIELDS | {"text": LABELS}, none)
    with pytest.raises(UserError, match="label=: the model has this condition, drop lacks it"):
        vector(FIELDS, {"style": none["style"]})


@pytest.mark.parametrize(
    "part", [Continuous(2, 8, before_mapping=True), ClassLabel(4, 8, before_mapping=True)]
)
def test_features_that_no_noise_level_takes_are_refused(part):
    model = Conditioner(MagnitudeNoiseLevel(16, 8), {"own": part})
    with pytest.raises(UserError, match="before_mapping=True: MagnitudeNoiseLevel takes no features"):
        model.init(jax.random.key(0), NOISE, model.example(3), model.none_dropped(3))


@pytest.mark.parametrize("wrong", [-1, 10, 255])
def test_a_label_out_of_range_is_refused(wrong):
    with pytest.raises(UserError, match=f"label={wrong}: classes are 0 to 9. Fix: "):
        CONDITIONER.check({"label": np.array([3, wrong, 1])})


def test_labels_are_integers():
    with pytest.raises(UserError, match=r"style=1.5: a class is an integer, not float"):
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
def test_impossible_conditions(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_config_writes_every_part_down():
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


def test_sinusoids_are_those_of_the_papers():
    label, half = 37.0, 4
    adm = [label * 10_000 ** (-i / half) for i in range(half)]
    np.testing.assert_allclose(
        sinusoids(jnp.array([label]), half)[0], np.concatenate([np.cos(adm), np.sin(adm)]), atol=1e-5
    )
    ddpm = [label * 10_000 ** (-i / (half - 1)) for i in range(half)]
    np.testing.assert_allclose(
        sinusoids(jnp.array([label]), half, endpoint=True, sine_first=True)[0],
        np.concatenate([np.sin(ddpm), np.cos(ddpm)]),
        atol=1e-5,
    )


def test_merged_tokens_and_channels_stand_side_by_side():
    tokens = [Tokens(jnp.full((1, n, 2), float(n)), jnp.full((1, n), n == 2)) for n in (2, 3)]
    images = [jnp.full((1, 4, 4, n), float(n)) for n in (1, 2)]
    merged = merge(
        [Embeddings(tokens=tokens[0], spatial=images[0]), Embeddings(tokens=tokens[1], spatial=images[1])]
    )
    assert merged.vector is None
    assert merged.tokens.mask.tolist() == [[True, True, False, False, False]]
    assert merged.tokens.features[0, :, 0].tolist() == [2, 2, 3, 3, 3]
    assert merged.spatial[0, 0, 0].tolist() == [1, 2, 2]


def test_embeddings_that_do_not_fit_each_other():
    with pytest.raises(UserError, match=r"width=\[4, 5\]"):
        merge([Embeddings(vector=jnp.zeros((1, 4))), Embeddings(vector=jnp.zeros((1, 5)))])
    with pytest.raises(UserError, match="image_shape="):
        merge([Embeddings(spatial=jnp.zeros((1, 4, 4, 1))), Embeddings(spatial=jnp.zeros((1, 8, 8, 1)))])
