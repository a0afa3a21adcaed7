import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.config import build, from_json, spec, to_json
from jaxdiff.errors import UserError
from jaxdiff.training.optimizer import AdamW, Constant, Cosine, InverseSqrt


def test_cosine_without_warmup_matches_optax():
    ours, theirs = Cosine(final=0.1)(2e-3, 100), optax.cosine_decay_schedule(2e-3, 100, alpha=0.1)
    steps = jnp.arange(150)
    assert np.allclose(ours(steps), theirs(steps), rtol=1e-5)


@pytest.mark.parametrize(
    "schedule", [Constant(warmup_steps=10), Cosine(warmup_steps=10), InverseSqrt(20, warmup_steps=10)]
)
def test_warmup_is_linear_positive_at_once_and_ends_at_the_peak(schedule):
    rate = schedule(0.5, 100)
    assert np.allclose(rate(jnp.arange(10)), 0.05 * np.arange(1, 11))
    assert np.isclose(rate(10), 0.5)


def test_cosine_ends_at_its_final_fraction():
    assert np.isclose(Cosine(warmup_steps=3, final=0.25)(0.4, 50)(50), 0.1)


def test_inverse_sqrt_is_constant_up_to_decay_steps():
    rate = InverseSqrt(decay_steps=100)(0.4, 1000)
    assert np.allclose(rate(jnp.arange(101)), 0.4)
    assert np.allclose(rate(jnp.array([400, 2500])), [0.2, 0.08])


def test_first_step_of_adam_is_the_rate_in_the_direction_of_the_sign():
    optimizer = AdamW(learning_rate=0.01, clip_norm=None).make(10)
    params, grads = jnp.zeros(3), jnp.array([3.0, -0.5, 100.0])
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    assert np.allclose(updates, [-0.01, 0.01, -0.01], rtol=1e-4)


def test_weight_decay_is_decoupled_and_scaled_by_the_rate():
    optimizer = AdamW(learning_rate=0.01, weight_decay=0.5).make(10)
    params = {"kernel": jnp.array([[2.0]]), "bias": jnp.array([2.0])}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert np.allclose(updates["kernel"], -0.01 * 0.5 * 2.0)
    assert updates["bias"] == 0


def test_gradients_above_the_clip_norm_act_as_if_scaled_to_it():
    optimizer = AdamW(clip_norm=1.0, eps=1.0).make(10)
    params = jnp.zeros(2)
    at, _ = optimizer.update(jnp.array([0.6, 0.8]), optimizer.init(params), params)
    above, _ = optimizer.update(jnp.array([60.0, 80.0]), optimizer.init(params), params)
    assert np.allclose(at, above, rtol=1e-5)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_unit_weights_stay_on_the_sphere(clip_norm):
    """After a step, the weights of each output have norm sqrt(fan in), and have moved along the negative gradient."""
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape, np.float32))  # noqa: E731
    params = {
        "conv": {"weight": draw(3, 3, 4, 5), "gain": draw()},
        "dense": {"weight": draw(7, 6), "kernel": draw(7, 6)},
    }
    grads = jax.tree.map(lambda leaf: draw(*leaf.shape), params)
    moved = {}
    for unit_weights in (None, "weight"):
        optimizer = AdamW(0.1, clip_norm=clip_norm, unit_weights=unit_weights).make(10)
        updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
        moved[unit_weights] = optax.apply_updates(params, updates)
    for free, kept in ((moved[None][name]["weight"], moved["weight"][name]["weight"]) for name in params):
        flat = kept.reshape(-1, kept.shape[-1])
        assert np.allclose(np.linalg.norm(flat, axis=0), np.sqrt(len(flat)), rtol=1e-6)
        ratio = free / kept
        assert np.allclose(
            ratio, ratio.reshape(flat.shape)[:1].reshape((1,) * (free.ndim - 1) + (-1,)), rtol=1e-3
        )
    assert np.array_equal(moved[None]["conv"]["gain"], moved["weight"]["conv"]["gain"])
    assert np.array_equal(moved[None]["dense"]["kernel"], moved["weight"]["dense"]["kernel"])


def test_unit_weights_without_a_matching_name_are_an_error():
    with pytest.raises(UserError, match=r"unit_weights='weights': expected the name of a parameter"):
        AdamW(unit_weights="weights").make(10).init({"weight": jnp.ones((2, 2))})


@pytest.mark.parametrize("arguments", [{"decay_steps": 0}, {"decay_steps": 5, "warmup_steps": -1}])
def test_impossible_steps_of_a_schedule_are_errors(arguments):
    with pytest.raises(UserError, match=f"{list(arguments)[-1]}="):
        InverseSqrt(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"learning_rate": 0.0}, {"b2": 1.0}, {"eps": 0.0}, {"weight_decay": -1.0}, {"clip_norm": 0.0}],
)
def test_impossible_numbers_are_errors(arguments):
    with pytest.raises(UserError, match=next(iter(arguments))):
        AdamW(**arguments)


def test_warmup_longer_than_the_run_is_an_error():
    with pytest.raises(UserError, match=r"^config\.optimizer\.schedule\.warmup_steps=10: "):
        AdamW(schedule=Cosine(warmup_steps=10)).make(10)


def test_optimizers_survive_json():
    block = spec(AdamW, learning_rate=3e-4, schedule=spec(Cosine, warmup_steps=5), clip_norm=None)
    assert build(from_json(to_json(block))) == AdamW(3e-4, Cosine(5), clip_norm=None)
