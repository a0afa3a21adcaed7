"""The learned schedule: monotone, with exact ends, inverse and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.config import build, from_json, spec, to_json
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import VariancePreserving, diffuse
from jaxdiff.process.learned import LearnedVariancePreserving
from jaxdiff.process.prediction import Edm

MODULE = LearnedVariancePreserving(log_snr_min=-6.0, log_snr_max=11.0, width=16)


def parameters(seed=None, size=1.5):
    """Initial parameters, or others far from them."""
    params = MODULE.init(jax.random.key(0))["params"]
    if seed is None:
        return params
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf + size * rng.normal(size=leaf.shape)), params)


def schedule(params):
    return MODULE.apply({"params": jax.tree.map(jnp.asarray, params)}).schedule


@jax.jit
def there_and_back(learned, t):
    return learned.log_snr(t), learned.time(learned.log_snr(t))


@pytest.mark.spread(3)
@pytest.mark.parametrize("seed", [None, 0, 1, 2, 3])
def test_any_parameters_fall_strictly_between_their_ends_and_are_inverted(seed):
    params = parameters(seed)
    learned = schedule(params)
    t = jnp.asarray(np.linspace(-0.3, 1.3, 161))
    log_snr, back = there_and_back(learned, t)
    assert np.all(np.diff(log_snr) < 0)
    np.testing.assert_allclose(back, t, rtol=1e-9, atol=1e-9)
    ends = log_snr[jnp.array([30, 130])]
    span = np.log1p(np.exp(params["range"]))
    np.testing.assert_allclose(ends, [-params["gamma_0"], -params["gamma_0"] - span], rtol=1e-6)


def test_a_nearly_flat_network_is_inverted_beyond_its_ends():
    flat = {"slope": jnp.asarray(-3.0), "height": jnp.full(16, -9.0)}
    t = jnp.asarray([-0.4, -0.1, 1.1, 1.4])
    _, back = there_and_back(schedule({**parameters(), **flat}), t)
    np.testing.assert_allclose(back, t, rtol=1e-9)


def test_gamma_is_the_networks_formula_between_its_ends():
    """Kingma et al. 2021, appendix H, in numpy."""
    learned, t = schedule(parameters(6)), np.linspace(0, 1, 161)
    of = {name: np.asarray(getattr(learned, name)) for name in ("slope", "steepness", "offset", "height")}

    def g(t):
        inner = np.multiply.outer(t, of["steepness"]) + of["offset"]
        return of["slope"] * t + 1 / (1 + np.exp(-inner)) @ of["height"]

    gamma = learned.gamma_0 + (learned.gamma_1 - learned.gamma_0) * (g(t) - g(0.0)) / (g(1.0) - g(0.0))
    np.testing.assert_allclose(there_and_back(learned, jnp.asarray(t))[0], -gamma, rtol=1e-9, atol=1e-9)


def test_initial_gamma_is_nearly_linear_between_its_ends():
    learned = schedule(parameters())
    t = jnp.asarray(np.linspace(0, 1, 101))
    log_snr = learned.log_snr(t)
    np.testing.assert_allclose(log_snr[jnp.array([0, -1])], [11.0, -6.0], rtol=1e-6)
    assert np.max(np.abs(log_snr - (11 - 17 * t))) < 1.5
    centres = -learned.offset / learned.steepness
    assert np.all((centres >= 0) & (centres <= 1))


@pytest.mark.parametrize(("name", "at"), [("log_snr", [0.05, 0.4, 0.9]), ("time", [9.0, 2.0, -1.5])])
def test_gradients_match_finite_differences(name, at):
    """Forwards along one direction of parameters and argument, and backwards against it."""
    primals, rng = (parameters(4, 0.5), jnp.array(at)), np.random.default_rng(5)
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), primals)

    @jax.jit
    def slopes(h):
        def value(params, x):
            return getattr(schedule(params), name)(x)

        def moved(by):
            return value(*jax.tree.map(lambda leaf, d: leaf + by * d, primals, direction))

        _, forwards = jax.jvp(value, primals, direction)
        _, pull = jax.vjp(value, *primals)
        pulled = pull(jnp.ones(3))
        backwards = sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), pulled, direction)))
        return forwards, (moved(h) - moved(-h)) / (2 * h), backwards

    forwards, differences, backwards = slopes(1e-5)
    np.testing.assert_allclose(forwards, differences, rtol=1e-6)
    np.testing.assert_allclose(backwards, np.sum(forwards), rtol=1e-9)


def test_the_inverse_has_gradients_for_its_argument_only():
    """``log_snr(time(x)) = x`` for all parameters."""
    level = jnp.array([5.0, -2.0])
    back = lambda params, x: schedule(params).log_snr(schedule(params).time(x))  # noqa: E731
    of_params, of_level = jax.jit(jax.jacrev(back, (0, 1)))(parameters(5), level)
    np.testing.assert_allclose(of_level, np.eye(2), atol=1e-9)
    for leaf in jax.tree.leaves(of_params):
        np.testing.assert_allclose(leaf, 0, atol=1e-8)


def test_single_precision_inverts_to_its_last_digits(float32):
    learned = schedule(MODULE.init(jax.random.key(0))["params"])
    t = jnp.linspace(0, 1, 161)
    _, found = there_and_back(learned, t)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, t, atol=2e-6)


def test_the_process_is_a_tree_of_arrays_that_crosses_jit():
    process = MODULE.apply({"params": parameters(0)})
    assert isinstance(process, VariancePreserving)
    assert len(jax.tree.leaves(process)) == 6
    t = jnp.array([0.2, 0.7])
    alpha, sigma = jax.jit(lambda process, t: process.signal(t))(process, t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
    np.testing.assert_allclose(2 * np.log(alpha / sigma), process.log_snr(t), rtol=1e-6)


class Scaling(nn.Module):
    """The smallest network that sees its noise label."""

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        return x * nn.Dense(1, name="scale")(embeddings.vector)[:, None, None]


@pytest.mark.slow
def test_it_is_trained_as_a_part_of_a_denoiser(float32):
    block = spec(LearnedVariancePreserving, width=8)
    process = build(from_json(to_json(block)))
    assert process == build(block) == LearnedVariancePreserving(width=8)
    denoiser = Denoiser(Scaling(), Conditioner(NoiseLevel(8)), process, Edm())
    x, t = jnp.ones((2, 4, 4, 1)), jnp.array([0.3, 0.8])

    def error(params):
        process = denoiser.process_of(params)
        x_t = diffuse(process, x, 0.5 * x, t)
        found = denoiser.apply({"params": params}, x_t, t, {}, {}, method="predict")
        alpha, sigma = (value[:, None, None, None] for value in process.signal(t))
        rest = jnp.max(jnp.abs(alpha * found.x_0 + sigma * found.noise - x_t))
        return jnp.mean((found.x_0 - x) ** 2), rest

    @jax.jit
    def learn(key):
        params = nn.meta.unbox(denoiser.init(key, x, t, {}, {}, train=False))["params"]
        return jax.grad(error, has_aux=True)(params)

    gradient, rest = learn(jax.random.key(0))
    assert rest < 1e-5
    assert gradient["process"].keys() == {"gamma_0", "range", "slope", "steepness", "offset", "height"}
    assert all(np.all(np.isfinite(leaf)) and np.any(leaf != 0) for leaf in gradient["process"].values())


def test_impossible_ends_are_refused():
    with pytest.raises(UserError, match="log_snr_max=-9"):
        LearnedVariancePreserving(log_snr_max=-9.0)
