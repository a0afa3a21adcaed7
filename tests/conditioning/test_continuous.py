"""Continuous conditions, the noise level, and mixtures of classes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.errors import UserError

KEEP = jnp.zeros(3, bool)
NOISE = jnp.array([0.0, 1.0, -2.0])


def parameters(part, values):
    return nn.meta.unbox(part.init(jax.random.key(0), values, jnp.zeros(len(values), bool)))["params"]


def test_a_matrix_maps_zeros_to_zeros():
    part, values = Continuous(2, 5), jnp.array([[1.0, 2.0], [0.0, 0.0], [-3.0, 0.5]])
    params = parameters(part, values)
    assert jax.tree.map(jnp.shape, params) == {"kernel": (2, 5)}
    vector = part.apply({"params": params}, values, KEEP).vector
    np.testing.assert_allclose(vector, values @ params["kernel"], atol=1e-6)
    np.testing.assert_array_equal(vector[1], 0)
    np.testing.assert_array_equal(part.apply({"params": params}, values, ~KEEP).vector, 0)


def test_fourier_features_of_the_numbers_are_concatenated():
    part, values = (
        Continuous(2, 5, frequencies=3, max_period=100.0, scale=2.0),
        jnp.array([[256, 512], [0, 1], [40, 7]]),
    )
    params = parameters(part, values)
    angles = 2.0 * np.asarray(values)[:, :, None] * 100 ** (-np.arange(3) / 3)
    fourier = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1).reshape(3, 12)
    first, second = (params[name] for name in ("dense_0", "dense_1"))
    hidden = jax.nn.silu(fourier @ first["kernel"] + first["bias"][None])
    expected = hidden @ second["kernel"] + second["bias"][None]
    np.testing.assert_allclose(part.apply({"params": params}, values, KEEP).vector, expected, atol=1e-4)


def test_one_number_needs_no_axis():
    values = jnp.array([1.0, 0.0, -3.0])
    alone, listed = Continuous(None, 4), Continuous(1, 4)
    params = {"params": parameters(alone, values)}
    np.testing.assert_array_equal(
        alone.apply(params, values, KEEP).vector, listed.apply(params, values[:, None], KEEP).vector
    )


def test_a_learned_null_does_not_depend_on_the_values():
    part, values = Continuous(2, 5, null="learned", drop_rate=0.5), jnp.ones((3, 2))
    params = parameters(part, values) | {"null": jnp.arange(5.0)[None]}
    drop = jnp.array([True, False, True])
    vector = part.apply({"params": params}, values * jnp.nan, drop).vector
    np.testing.assert_array_equal(vector[np.array([0, 2])], np.tile(np.arange(5.0), (2, 1)))
    assert jnp.all(jnp.isnan(vector[1]))


def test_a_missing_field_is_its_default():
    parts = {"size": Continuous(2, 6, default=(3.0, -1.0)), "crop": Continuous(None, 6, default=0.5)}
    parts["augment"] = Continuous(9, 6, default=0.0)
    model = Conditioner(NoiseLevel(6, frequencies=2), parts | {"label": ClassLabel(4, 6)})
    keys = jax.random.split(jax.random.key(0), 3)
    batch = {"label": jnp.array([0, 1, 2]), "image": jnp.zeros((3, 2, 2, 1))}
    fields = model.draw(batch, keys, train=True)
    assert set(fields) == {"size", "crop", "augment", "label"}
    np.testing.assert_array_equal(fields["augment"], np.zeros((3, 9)))
    np.testing.assert_array_equal(fields["size"], [[3.0, -1.0]] * 3)
    np.testing.assert_array_equal(fields["crop"], [0.5] * 3)
    given = model.draw(batch | {"crop": jnp.arange(3.0)}, keys, train=True)
    np.testing.assert_array_equal(given["crop"], [0, 1, 2])
    with pytest.raises(
        UserError, match="label=: expected a field for this condition of the model, got none in the batch"
    ):
        model.draw({"image": batch["image"]}, keys, train=True)


def test_features_are_added_to_those_of_the_noise_level_before_the_mapping():
    noise = NoiseLevel(8, frequencies=3)
    part = Continuous(2, 6, before_mapping=True)
    model = Conditioner(noise, {"augment": part})
    fields = {"augment": jnp.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])}
    params = nn.meta.unbox(model.init(jax.random.key(1), NOISE, fields, model.none_dropped(3)))["params"]
    features = fields["augment"] @ params["parts_augment"]["kernel"]
    expected = noise.apply({"params": params["noise"]}, NOISE, features).vector
    found = model.apply({"params": params}, NOISE, fields, model.none_dropped(3))
    np.testing.assert_allclose(found.vector, expected, atol=1e-6)
    assert found.features is None
    plain = noise.apply({"params": params["noise"]}, NOISE).vector
    np.testing.assert_allclose(found.vector[2], plain[2], atol=1e-6)
    assert jnp.all(jnp.abs(found.vector - plain)[:2].max(axis=1) > 1e-3)


def test_random_frequencies_have_their_scale_and_no_gradient():
    noise = NoiseLevel(8, frequencies=4000, random_scale=16.0)
    params = nn.meta.unbox(noise.init(jax.random.key(0), NOISE))["params"]
    assert abs(jnp.std(params["frequencies"]) - 16) < 4 * 16 / np.sqrt(8000)
    assert abs(jnp.mean(params["frequencies"])) < 4 * 16 / np.sqrt(4000)
    gradient = jax.grad(lambda p: jnp.sum(noise.apply({"params": p}, NOISE).vector ** 2))(params)
    np.testing.assert_array_equal(gradient["frequencies"], 0)
    assert jnp.any(gradient["dense_0"]["kernel"] != 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Continuous(0, 4), "size=0"),
        (lambda: Continuous(2, 0), "width=0"),
        (lambda: Continuous(2, 4, frequencies=-1), "frequencies=-1"),
        (lambda: Continuous(2, 4, default=(1.0,)), r"default=\(1.0,\): expected 2 numbers"),
        (lambda: Continuous(2, 4, drop_rate=1.0), "drop_rate=1.0"),
        (lambda: nulls.check("nothing", 0.0), "null='nothing': expected one of learned, zero, none"),
        (lambda: Continuous(2, 4, null="none", drop_rate=0.1), "drop_rate=0.1: expected 0 with null='none'"),
        (lambda: NoiseLevel(8, random_scale=0.0), "random_scale=0.0"),
        (
            lambda: Continuous(2, 4).check(np.ones((3, 1))),
            r"numbers=float64\[3, 1\]: expected 2 numbers per image",
        ),
        (lambda: Continuous(None, 4).check(np.ones((3, 1))), "expected one number per image"),
        (lambda: Continuous(None, 4).check(["a"]), "expected one number per image"),
        (lambda: Continuous(None, 4).check([1.0, np.inf]), "expected finite numbers"),
        (
            lambda: NoiseLevel(8, frequencies=2).init(jax.random.key(0), NOISE, jnp.ones((3, 5))),
            "width=5: expected 4, the number of Fourier features",
        ),
    ],
)
def test_invalid_fields_and_values_raise(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_rows_of_weights_add_up_to_one():
    part = ClassLabel(3, 4)
    part.check(np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))
    for rows in (np.zeros((1, 3)), np.full((1, 3), 0.5), np.array([[2.0, -1.0, 0.0]]), np.full((1, 2), 0.5)):
        with pytest.raises(UserError, match=r"label=float64.*: expected weights >= 0 of 3 classes"):
            part.check(rows)
    with pytest.raises(UserError, match=r"label=\[1, 2\]: expected one class per image"):
        part.check([[1, 2]])
