"""Parameters in bfloat16: stochastic rounding is unbiased, so that updates far below one ulp are not lost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.training.ema import Ema, NoEma
from jaxdiff.training.optimizer import AdamW
from jaxdiff.training.rounding import rounded, stochastic
from jaxdiff.training.state import create_state
from jaxdiff.training.step import Frozen, make_train_step
from tests.training import toy

ULP = 2.0**-7
"""The distance of neighbours in bfloat16 between 1 and 2."""

MANY = jax.jit(jax.vmap(stochastic, (None, 0)))


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_the_mean_over_many_keys_is_the_number():
    random = np.random.default_rng(0)
    x = random.standard_normal(200).astype(np.float32) * np.float32(10) ** random.integers(-10, 10, 200)
    drawn = np.asarray(MANY(jnp.asarray(x), keys(4000)).astype(jnp.float32), np.float64)
    spacing = np.abs(x) * ULP  # neighbours are at most this far apart
    assert np.all(np.abs(drawn - x) < spacing)
    assert max(len(set(column)) for column in drawn.T) == 2
    assert np.all(np.abs(drawn.mean(axis=0) - x) < 5 * spacing / 2 / np.sqrt(4000))


def test_a_number_halfway_goes_either_way_equally_often():
    x = jnp.float32([1 + ULP / 2, -1 - ULP / 2, 1 + ULP / 4])
    up = np.abs(np.asarray(MANY(x, keys(10_000)).astype(jnp.float32))) > 1
    np.testing.assert_allclose(up.mean(axis=0), [0.5, 0.5, 0.25], atol=0.02)


def test_what_bfloat16_can_hold_stays():
    x = jnp.float32([0.0, -0.0, 1.0, -3.5, 2.0**-126, np.inf, -np.inf, np.nan])
    found = MANY(x, keys(50)).astype(jnp.float32)
    np.testing.assert_array_equal(found, np.broadcast_to(x, (50, 8)))
    np.testing.assert_array_equal(np.signbit(found[:, :2]), [[False, True]] * 50)


def test_rounding_is_the_same_on_any_mesh():
    tree = {"kernel": jnp.linspace(-1, 1, 64).reshape(8, 8), "bias": jnp.linspace(0, 1, 8)}
    like = {"kernel": tree["kernel"].astype(jnp.bfloat16), "bias": tree["bias"]}
    one = jax.jit(rounded)(tree, like, jax.random.key(3))
    rows = jax.sharding.NamedSharding(toy.mesh(8), jax.sharding.PartitionSpec("data"))
    many = jax.jit(rounded, out_shardings=rows)(jax.device_put(tree, rows), like, jax.random.key(3))
    np.testing.assert_array_equal(one["kernel"], many["kernel"])
    np.testing.assert_array_equal(one["bias"], tree["bias"])
    assert one["kernel"].dtype == jnp.bfloat16


class Slope(toy.Linear):
    """A loss that is linear in bfloat16 parameters, so that their gradient is 1 everywhere."""

    def init(self, key):
        return {"kernel": jnp.ones((64, 64), jnp.bfloat16), "bias": jnp.ones(4)}

    def loss(self, params, context, examples, key, train):
        each = jnp.sum(params["kernel"].astype(jnp.float32)) + jnp.sum(params["bias"])
        return jnp.broadcast_to(each, examples["x"].shape[:1]), {}


HALVING = Ema(0.5)


def descend(steps, optimizer, ema=HALVING, seed=0, state=None, first=0):
    """`steps` steps down the slope, from a state after `first` of them."""
    task = Slope()
    state = state or create_state(task, optimizer, toy.mesh(), seed, emas=ema.count)
    step = jax.jit(make_train_step(task, optimizer, ema, seed))
    for each in range(first, first + steps):
        state, metrics = step(state, toy.batch(each), Frozen())
    return state, metrics


def test_updates_far_below_one_ulp_are_not_lost_on_average():
    """300 updates of a 100th of the spacing below 1, which is ULP / 2: to the nearest, each of them is lost."""
    rate = ULP / 200
    assert jnp.bfloat16(1) - jnp.bfloat16(rate) == 1
    state, metrics = descend(300, optax.sgd(rate))
    kernel = np.asarray(state.params["kernel"], np.float64)
    error = np.sqrt(ULP / 2 * 300 * rate / kernel.size)  # of a random walk with steps of a spacing, averaged
    assert abs(kernel.mean() - (1 - 300 * rate)) < 4 * error
    np.testing.assert_allclose(state.params["bias"], 1 - 300 * rate, rtol=1e-5)
    assert np.isclose(metrics["update_norm"], rate * np.sqrt(64 * 64 + 4), rtol=1e-5)


def test_the_average_follows_in_bfloat16():
    """The EMA of a value that moves by `rate` a step lags by ``rate d / (1 - d)``."""
    rate, decay = ULP / 200, 0.98
    state, _ = descend(300, optax.sgd(rate), Ema(decay, warmup=False))
    assert state.ema["kernel"].dtype == jnp.bfloat16
    lag = np.mean(np.asarray(state.ema["kernel"], np.float64)) - np.mean(
        np.asarray(state.params["kernel"], np.float64)
    )
    assert np.isclose(lag, rate * decay / (1 - decay), rtol=0.15)


def test_random_rounding_follows_from_seed_and_step():
    whole, _ = descend(6, optax.sgd(ULP / 9))
    half, _ = descend(3, optax.sgd(ULP / 9))
    rest, _ = descend(3, optax.sgd(ULP / 9), state=half, first=3)
    assert toy.sha(rest) == toy.sha(whole)
    other, _ = descend(6, optax.sgd(ULP / 9), seed=1)
    assert toy.sha(other) != toy.sha(whole)


def test_statistics_of_the_optimizer_are_float32():
    """In bfloat16, an average with a decay of 0.999 would never move again after it has begun."""
    state, _ = descend(2, AdamW(1e-3).make(10))
    floats = [
        leaf.dtype for leaf in jax.tree.leaves(state.opt_state) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    assert set(floats) == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("accumulation", [1, 4])
def test_micro_batches_are_summed_in_float32(accumulation):
    task, optimizer = Slope(), optax.sgd(1.0)
    state = create_state(task, optimizer, toy.mesh(), 0)
    step = jax.jit(make_train_step(task, optimizer, Ema(), 0, accumulation))
    state, metrics = step(state, toy.batch(0), Frozen())
    np.testing.assert_array_equal(state.params["kernel"], 0)
    assert np.isclose(metrics["grad_norm"], np.sqrt(64 * 64 + 4), rtol=1e-6)


def test_without_an_average_the_parameters_are_sampled():
    state, _ = descend(3, optax.sgd(ULP / 9), NoEma())
    averaged, _ = descend(3, optax.sgd(ULP / 9))
    assert not jax.tree.leaves(state.ema)
    assert toy.sha(state.params) == toy.sha(averaged.params) == toy.sha(state.sampled)
    assert toy.sha(averaged.sampled) == toy.sha(averaged.ema)


def test_the_key_of_the_rounding_leaves_the_other_draws_as_they_were():
    key = jax.random.key(5)
    two, three = (jax.random.key_data(jax.random.split(key, count)) for count in (2, 3))
    np.testing.assert_array_equal(three[:2], two)
