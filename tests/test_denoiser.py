"""The denoiser combines its parts according to their equations."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.uncertainty import Uncertainty
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding
from jaxdiff.process.prediction import Edm, Velocity

SIGMA_DATA = 0.5
NETWORK = UNet((Level(8, blocks=1),), out_channels=1, middle=ResidualMiddle(None))
CONDITIONER = Conditioner(NoiseLevel(16), {"label": ClassLabel(3, 16)})
DENOISER = Denoiser(NETWORK, CONDITIONER, VarianceExploding(), Edm(SIGMA_DATA))
X_T = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
T = jnp.array([0.1, 0.5, 0.9])
FIELDS = {"label": jnp.array([0, 1, 2])}


@functools.cache
def initial():
    init = jax.jit(functools.partial(DENOISER.init, train=False))
    return nn.meta.unbox(init(jax.random.key(0, impl="rbg"), X_T, T, FIELDS, CONDITIONER.none_dropped(3)))


def randomised():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32)), initial()
    )


@functools.partial(jax.jit, static_argnums=0)
def predict(denoiser, params, fields, drop):
    return denoiser.apply(params, X_T, T, fields, drop, method="predict")


def test_a_zero_network_with_edm_is_the_denoiser_of_gaussian_data():
    """F = 0 leaves c_skip x: the posterior mean of data ~ N(0, sigma_data^2) (Karras et al. 2022)."""
    sigma = DENOISER.process.signal(T).sigma
    shrink = SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma**2)
    x_0 = predict(DENOISER, initial(), FIELDS, CONDITIONER.none_dropped(3)).x_0
    np.testing.assert_allclose(x_0, shrink[:, None, None, None] * X_T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("process", "parameterization"), [(VarianceExploding(), Edm()), (RectifiedFlow(), Velocity())]
)
def test_the_prediction_reproduces_the_noisy_image(process, parameterization):
    denoiser = Denoiser(NETWORK, CONDITIONER, process, parameterization)
    pair = predict(denoiser, randomised(), FIELDS, CONDITIONER.none_dropped(3))
    alpha, sigma = (value[:, None, None, None] for value in process.signal(T))
    np.testing.assert_allclose(alpha * pair.x_0 + sigma * pair.noise, X_T, atol=1e-5)


def test_labels_matter_unless_they_are_dropped():
    params = randomised()
    other = {"label": FIELDS["label"][::-1]}
    none, all_ = CONDITIONER.none_dropped(3), dict.fromkeys(CONDITIONER.conditions, jnp.ones(3, bool))
    assert jnp.any(predict(DENOISER, params, FIELDS, none).x_0 != predict(DENOISER, params, other, none).x_0)
    for got, want in zip(
        predict(DENOISER, params, FIELDS, all_)[:2], predict(DENOISER, params, other, all_)[:2], strict=True
    ):
        np.testing.assert_array_equal(got, want)


@pytest.mark.slow
def test_uncertainty_changes_nothing_else():
    certain = initial()["params"]
    denoiser = Denoiser(NETWORK, CONDITIONER, VarianceExploding(), Edm(SIGMA_DATA), Uncertainty(8))
    init = jax.jit(functools.partial(denoiser.init, train=False))
    arguments = (X_T, T, FIELDS, CONDITIONER.none_dropped(3))
    params = nn.meta.unbox(init(jax.random.key(0, impl="rbg"), *arguments))["params"]
    jax.tree.map(
        np.testing.assert_array_equal,
        certain,
        {name: tree for name, tree in params.items() if name in certain},
    )
    assert set(params) - set(certain) == {"uncertainty"}
    assert DENOISER.apply({"params": certain}, T, method="log_variance") is None
    np.testing.assert_array_equal(denoiser.apply({"params": params}, T, method="log_variance"), 0)
    random = np.random.default_rng(0)
    params["uncertainty"] = jax.tree.map(
        lambda x: x + random.standard_normal(x.shape, np.float32), params["uncertainty"]
    )
    frequencies, phases, linear = (
        params["uncertainty"][name] for name in ("frequencies", "phases", "linear")
    )
    label = np.log(DENOISER.process.signal(T).sigma)[:, None] / 4
    waves = np.sqrt(2) * np.cos(2 * np.pi * (label * frequencies[None] + phases[None]))
    expected = waves @ linear["kernel"][:, 0] + linear["bias"][0]
    found = denoiser.apply({"params": params}, T, method="log_variance")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_equal_denoisers_share_a_compiled_program():
    again = Denoiser(
        UNet((Level(8, blocks=1),), out_channels=1, middle=ResidualMiddle(None)),
        Conditioner(NoiseLevel(16), {"label": ClassLabel(3, 16)}),
        VarianceExploding(),
        Edm(SIGMA_DATA),
    )
    assert again == DENOISER
    assert hash(again) == hash(DENOISER)


FLOW_MAP = Denoiser(NETWORK, CONDITIONER.clone(span=NoiseLevel(16)), RectifiedFlow(), Velocity())


@functools.cache
def of_flow_map():
    init = jax.jit(functools.partial(FLOW_MAP.init, train=False))
    params = init(jax.random.key(0, impl="rbg"), X_T, T, FIELDS, CONDITIONER.none_dropped(3))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32), nn.meta.unbox(params)
    )


def towards(until):
    return FLOW_MAP.apply(
        of_flow_map(), X_T, T, FIELDS, CONDITIONER.none_dropped(3), method="predict", until=until
    )


def test_a_step_of_no_length_is_the_plain_prediction():
    jax.tree.map(np.testing.assert_array_equal, towards(None), towards(T))
    assert np.all(np.abs(towards(0.5 * T).x_0 - towards(T).x_0).max(axis=(1, 2, 3)) > 1e-4)


def test_a_network_with_two_times_adds_their_embeddings():
    """With a span that embeds everything as 0 it is the network with one time."""
    params = of_flow_map()["params"]
    span = jax.tree.map(jnp.zeros_like, params["conditioner"]["span"])
    conditioner = {**params["conditioner"], "span": span}
    arguments = (X_T, T, FIELDS, CONDITIONER.none_dropped(3))
    found = FLOW_MAP.apply(
        {"params": {**params, "conditioner": conditioner}}, *arguments, method="predict", until=0 * T
    )
    plain = Denoiser(NETWORK, CONDITIONER, RectifiedFlow(), Velocity())
    alone = {**params, "conditioner": {name: conditioner[name] for name in conditioner if name != "span"}}
    expected = plain.apply({"params": alone}, *arguments, method="predict")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_the_end_of_a_step_needs_a_network_that_reads_it():
    with pytest.raises(UserError, match=r"conditioner.span=None: expected a module .* Fix: give span"):
        DENOISER.apply(initial(), X_T, T, FIELDS, CONDITIONER.none_dropped(3), method="predict", until=0 * T)
