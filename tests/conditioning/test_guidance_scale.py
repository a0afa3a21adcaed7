"""The guidance scale as a condition: drawn in training, given in sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.guidance_scale import GuidanceScale
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.errors import UserError

SCALE = GuidanceScale(width=8, low=1.5, high=6.0, default=2.0)
CONDITIONER = Conditioner(NoiseLevel(8), {"w": SCALE})


def test_in_training_the_logarithm_is_uniform_between_the_bounds():
    keys = jax.random.split(jax.random.key(0), 10_000)
    found = CONDITIONER.draw({}, keys, train=True)["w"]
    place = np.log(np.asarray(found) / 1.5) / np.log(6.0 / 1.5)
    assert place.min() >= 0
    assert place.max() <= 1
    for level in (0.25, 0.5, 0.75):  # a share of n draws has a standard error below 0.5 / sqrt(n)
        assert abs(np.mean(place < level) - level) < 4 * 0.5 / 100


def test_in_sampling_it_is_the_given_value_or_the_default():
    keys = jax.random.split(jax.random.key(0), 2)
    given = jnp.asarray([1.5, 3.0])
    np.testing.assert_array_equal(CONDITIONER.draw({"w": given}, keys, train=False)["w"], given)
    np.testing.assert_array_equal(CONDITIONER.draw({}, keys, train=False)["w"], 2.0)


def test_it_is_never_dropped():
    assert not CONDITIONER.has_null("w")
    params = SCALE.init(jax.random.key(0), jnp.ones(2), jnp.zeros(2, bool))
    shown, dropped = (
        SCALE.apply(params, jnp.asarray([2.0, 4.0]), jnp.full(2, drop)) for drop in (False, True)
    )
    np.testing.assert_array_equal(shown.vector, dropped.vector)
    assert np.any(shown.vector[0] != shown.vector[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GuidanceScale(size=2, width=8), "size=2: expected None"),
        (lambda: GuidanceScale(width=8, low=0.0), "low=0.0"),
        (lambda: GuidanceScale(width=8, low=3.0, high=2.0), "high=2.0: expected a scale above low=3"),
        (lambda: GuidanceScale(width=8, default=9.0), "default=9.0: expected a number in"),
        (lambda: SCALE.check(np.array([2.0, 7.0]), "w"), r"w=7.0: expected scales in \[1.5, 6\]"),
    ],
)
def test_scales_that_were_not_trained_are_refused(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert ". Fix: " in str(error.value)
