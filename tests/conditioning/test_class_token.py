"""Class tokens: the embedding of latent diffusion, mixtures of classes, and refusals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.class_token import ClassToken
from jaxdiff.errors import UserError

PART = ClassToken(5, 8)
LABELS = jnp.array([0, 4, 2])
SHOWN = jnp.zeros(3, bool)


def parameters(part=PART):
    return nn.meta.unbox(part.init(jax.random.key(0), LABELS, SHOWN))["params"]


def tokens(values, drop=SHOWN, part=PART):
    return part.apply({"params": parameters(part)}, values, drop).tokens


def test_a_label_is_the_token_of_torchs_embedding():
    torch = pytest.importorskip("torch")
    table = torch.from_numpy(np.array(parameters()["table"]))
    expected = torch.nn.functional.embedding(torch.tensor(np.array(LABELS)), table)[:, None]
    found = tokens(LABELS)
    np.testing.assert_array_equal(found.features, expected)
    assert found.mask.tolist() == [[True]] * 3


def test_a_mixture_is_the_mean_of_its_tokens():
    halves = jnp.array([[0.5, 0, 0, 0, 0.5]] * 3)
    expected = (tokens(LABELS).features[0] + tokens(LABELS).features[1]) / 2
    np.testing.assert_allclose(tokens(halves).features[0], expected, atol=1e-6)


def test_a_dropped_label_is_the_null_and_still_attended_to():
    found = tokens(LABELS, ~SHOWN)
    np.testing.assert_array_equal(found.features, np.broadcast_to(parameters()["null"], (3, 1, 8)))
    np.testing.assert_array_equal(tokens(LABELS, ~SHOWN, ClassToken(5, 8, null="zero")).features, 0)
    assert found.mask.all()


def test_a_label_out_of_range_is_not_another_class():
    assert np.isnan(tokens(jnp.array([-1, 5, 2])).features[:2]).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"width": 0}, "width=0"),
        ({"drop_rate": 1.0}, "drop_rate=1.0"),
        ({"null": "empty"}, "null='empty'"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        ClassToken(**{"num_classes": 5, "width": 8, **fields})
