import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.training.ema import Ema
from jaxdiff.training.state import abstract_state, create_state
from jaxdiff.training.step import Context, Frozen, Task, accumulate, make_train_step
from tests.training import toy


def losses(history):
    return np.array([metrics["loss"] for metrics in history])


def distance(a, b):
    """Between two trees, relative to the norm of the second."""
    difference = jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), a, b)
    return float(optax.tree.norm(difference) / optax.tree.norm(b))


def test_toy_task_is_a_task():
    assert isinstance(toy.Linear(), Task)
    assert isinstance(toy.Recalling(), Task)


def test_training_finds_the_least_squares_solution():
    state, _ = toy.train(600, mesh=toy.mesh())
    shrunk = 2.0 / (
        1.0 + 0.1**2
    )  # noise on the regressor attenuates the slope by var(x) / (var(x) + var(noise))
    assert np.allclose(state.params["kernel"], shrunk * np.eye(toy.SIZE)[::-1], atol=0.1)
    assert np.allclose(state.params["bias"], 1.0, atol=0.1)


def test_loss_and_gradient_norm_match_the_closed_form():
    sgd = optax.sgd(0.1)
    before = jax.device_get(create_state(toy.LINEAR, sgd, toy.mesh(), 0).params)
    after, history = toy.train(1, mesh=toy.mesh(), optimizer=sgd)
    grads = jax.tree.map(lambda old, new: (old - np.asarray(new)) / 0.1, before, after.params)
    assert np.isclose(history[0]["grad_norm"], optax.tree.norm(grads), rtol=1e-4)
    assert np.isclose(history[0]["update_norm"], 0.1 * history[0]["grad_norm"], rtol=1e-5)
    assert np.isclose(history[0]["param_norm"], optax.tree.norm(after.params), rtol=1e-6)


@pytest.mark.parametrize("accumulation", [4])
def test_accumulation_does_not_change_what_is_learned(accumulation):
    whole, history = toy.train(5, mesh=toy.mesh(2))
    parts, history_of_parts = toy.train(5, mesh=toy.mesh(2), accumulation=accumulation)
    assert np.allclose(losses(history), losses(history_of_parts), rtol=1e-6)
    assert distance(parts.params, whole.params) < 1e-6


def test_micro_batches_take_every_example_once_with_different_keys():
    seen = []

    def look(params, examples, key):
        jax.debug.callback(
            lambda x, k: seen.append((x.tolist(), k.tolist())), examples, jax.random.key_data(key)
        )
        return jnp.mean(examples), (examples**2, jnp.stack([examples, -examples], axis=1))

    mean, rows = jax.jit(accumulate(look, 3))(None, jnp.arange(12.0), jax.random.key(0))
    jax.effects_barrier()
    assert mean == np.mean(np.arange(12.0))
    np.testing.assert_array_equal(rows[0], np.arange(12.0) ** 2)  # in the order of the batch
    np.testing.assert_array_equal(rows[1], np.arange(12.0)[:, None] * [1, -1])
    assert sorted(x for xs, _ in seen for x in xs) == list(range(12))
    assert sorted(xs for xs, _ in seen)[0] == [0, 3, 6, 9]  # strided
    assert len({tuple(key) for _, key in seen}) == 3


def test_rate_counts_optimizer_steps_with_any_accumulation():
    rates = []

    def rate(count):
        jax.debug.callback(lambda c: rates.append(int(c)), count)
        return 0.01

    state, _ = toy.train(3, mesh=toy.mesh(), optimizer=optax.adamw(rate), accumulation=4)
    jax.effects_barrier()
    assert rates == [0, 1, 2]
    assert int(state.step) == 3


def test_one_device_and_eight_learn_the_same():
    one, history_of_one = toy.train(6, mesh=toy.mesh(1))
    eight, history_of_eight = toy.train(6, mesh=toy.mesh(8))
    assert np.allclose(losses(history_of_one), losses(history_of_eight), rtol=1e-6)
    assert distance(eight.params, one.params) < 1e-6


@pytest.mark.spread(1)
@pytest.mark.parametrize(("shape", "accumulation"), [({"fsdp": 2}, 1), ({"fsdp": 4, "tensor": 2}, 2)])
def test_sharded_state_is_split_and_learns_the_same(shape, accumulation):
    task = toy.WIDE
    whole, history = toy.train(4, mesh=toy.mesh(8), task=task)
    split, history_of_split = toy.train(4, mesh=toy.mesh(8, **shape), task=task, accumulation=accumulation)
    assert np.allclose(losses(history), losses(history_of_split), rtol=1e-5)
    assert distance(split.params, whole.params) < 1e-5
    ways = np.prod(list(shape.values()))
    moments = split.opt_state[0]
    for tree in (split.params, split.ema, moments.mu, moments.nu):
        assert tree["kernel"].addressable_shards[0].data.size == 128 * 128 / ways
        assert tree["bias"].sharding.is_fully_replicated


def test_state_is_created_the_same_on_any_mesh():
    task, optimizer = toy.WIDE, toy.ADAM
    states = [create_state(task, optimizer, toy.mesh(8, **shape), 3) for shape in ({}, {"fsdp": 8})]
    assert toy.sha(states[0]) == toy.sha(states[1])
    abstract = abstract_state(task, optimizer, toy.mesh(8, fsdp=8))
    described = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), states[1])
    assert described == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), abstract)


def test_average_starts_at_the_parameters_and_seeds_differ():
    states = [create_state(toy.LINEAR, toy.ADAM, toy.mesh(), seed) for seed in (0, 1)]
    assert toy.sha(states[0].params) == toy.sha(states[0].ema)
    assert toy.sha(states[0].params) != toy.sha(states[1].params)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_task_state_receives_the_losses_in_the_order_of_the_batch(accumulation):
    mesh = toy.mesh(2)
    before, _ = toy.train(1, mesh=mesh, task=toy.RECALLING, accumulation=accumulation)
    after, history = toy.train(2, mesh=mesh, task=toy.RECALLING, accumulation=accumulation)
    params, memory, batch = (jax.device_get(x) for x in (before.params, before.task_state, toy.batch(1)))
    draw_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), 1))
    losses, _ = toy.RECALLING.loss(
        params, Context(), toy.RECALLING.draw(batch, Context(task_state=memory), draw_key), None, train=True
    )
    np.testing.assert_allclose(after.task_state["losses"], losses, rtol=1e-5)
    np.testing.assert_array_equal(after.task_state["x"], batch["x"][:, 0])
    np.testing.assert_allclose(
        after.task_state["total"] - memory["total"], np.sum(losses), rtol=1e-5
    )  # added once
    np.testing.assert_allclose(history[1]["loss"], np.mean(losses), rtol=1e-6)


def test_task_state_is_replicated_and_the_same_on_any_mesh():
    one, _ = toy.train(3, mesh=toy.mesh(), task=toy.RECALLING)
    eight, _ = toy.train(3, mesh=toy.mesh(8), task=toy.RECALLING, accumulation=2)
    assert distance(eight.task_state, one.task_state) < 1e-6
    assert distance(eight.params, one.params) < 1e-6
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(eight.task_state))


def test_large_task_state_is_replicated_where_parameters_are_split():
    task = toy.Linear(128)
    task.init_task_state = lambda: jnp.zeros((2**15,))
    state = abstract_state(task, toy.ADAM, toy.mesh(8, fsdp=8))
    assert state.task_state.sharding.is_fully_replicated
    assert not state.params["kernel"].sharding.is_fully_replicated


@pytest.mark.parametrize("accumulation", [1, 2])
def test_step_with_a_nan_is_skipped_and_only_counts(accumulation):
    options = {"mesh": toy.mesh(2), "accumulation": accumulation, "poison": (2,), "task": toy.RECALLING}
    before, _ = toy.train(2, **options)
    after, history = toy.train(3, **options)
    for field in ("params", "ema", "opt_state", "task_state"):
        assert toy.sha(getattr(before, field)) == toy.sha(getattr(after, field))
    assert int(after.step) == 3
    assert [metrics["skipped"] for metrics in history] == [0, 0, 1]
    on, history = toy.train(4, **options)
    assert history[3]["skipped"] == 0
    assert np.isfinite(history[3]["loss"])
    assert toy.sha(on.params) != toy.sha(after.params)


def test_update_that_overflows_is_skipped():
    state, history = toy.train(2, mesh=toy.mesh(), optimizer=optax.sgd(1e38))
    assert history[0]["skipped"] == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state)))


def test_random_draws_follow_from_the_step():
    state = create_state(toy.LINEAR, toy.ADAM, toy.mesh(), 0)
    step = jax.jit(make_train_step(toy.LINEAR, toy.ADAM, Ema(), 0))
    at_0, again, at_1 = (
        step(state.replace(step=jnp.int32(n)), toy.batch(0), Frozen())[1]["loss"] for n in (0, 0, 1)
    )
    assert at_0 == again
    assert at_0 != at_1


def test_a_step_updates_the_average_by_its_rule():
    initial = toy.program(toy.mesh(), toy.ADAM, 1, toy.LINEAR)[1].params
    after, _ = toy.train(1, mesh=toy.mesh())
    expected = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * np.asarray(new), initial, after.params)
    assert distance(after.ema, expected) < 1e-6


def test_average_is_the_closed_sum():
    """After n steps with constant decay d: ema = d^n x_0 + (1 - d) sum_i d^(n - i) x_i."""
    path = np.random.default_rng(0).standard_normal(21).astype(np.float32)
    ema = average = Ema(decay=0.9, warmup=False)
    average = jnp.float32(path[0])
    for step, value in enumerate(path[1:]):
        average = ema.update(average, jnp.float32(value), step)
    powers = 0.9 ** np.arange(19, -1, -1)
    assert np.isclose(average, 0.9**20 * path[0] + 0.1 * np.sum(powers * path[1:]), rtol=1e-5)


def test_average_with_warmup_follows_its_rule():
    ema = Ema(decay=0.9999)
    for step, decay in [(0, 1 / 10), (90, 91 / 100), (89_000, 89_001 / 89_010), (10**6, 0.9999)]:
        assert np.isclose(ema.one_minus_decay(jnp.int32(step)), 1.0 - decay, rtol=1e-5)
    assert np.isclose(ema.update(jnp.float32(0.0), jnp.float32(1.0), 0), 0.9)  # the first update: d = 0.1
