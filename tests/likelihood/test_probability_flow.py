"""Likelihood by the probability-flow ODE, against densities in closed form."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.errors import UserError
from jaxdiff.likelihood.flow import (
    ExactDivergence,
    Heun,
    Hutchinson,
    RungeKutta4,
    bits_per_dim,
    dequantise,
    log_likelihood,
)
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.grids.continuous import Karras, LogSnrUniform
from tests.oracles import Gaussian, Mixture

PROCESSES = [VarianceExploding(1e-3, 1e3), VariancePreserving(Cosine()), RectifiedFlow()]
MEAN, STD = np.array([0.3, -0.5, 0.0]), np.array([0.4, 1.3, 0.8])
X = np.array([[0.2, 0.1, -0.4], [1.0, -2.0, 0.3]])


def gaussian() -> Gaussian:
    return Gaussian(jnp.asarray(MEAN).reshape(1, 1, 3, 1), jnp.asarray(STD).reshape(1, 1, 3, 1))


def images(x=X):
    return jnp.asarray(x).reshape(len(x), 1, -1, 1)


def keys_of(x):
    return jax.random.split(jax.random.key(0), len(x))


class Stored:
    """Given probes."""

    def __init__(self, vectors):
        self._vectors = vectors

    def vectors(self, keys, x):
        return self._vectors


GRIDS = [
    LogSnrUniform(-4.0, 4.0),
    Karras(math.exp(-2), math.exp(2)),
    LogSnrUniform(-4.0, 4.0),
]


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("process", "grid"), list(zip(PROCESSES, GRIDS, strict=True)), ids=["VE", "VP", "flow"]
)
def test_pf_ode_nll_gaussian(process, grid):
    """The distribution of noise, transported by the exact flow: every pixel keeps its quantile."""
    x, mean, std = (jnp.asarray(np.broadcast_to(v, X.shape)).reshape(-1, 1, 1, 1) for v in (X, MEAN, STD))
    model = Gaussian(mean, std).denoiser(process)
    first, last = math.exp(2), math.exp(-2)
    stretch = np.sqrt((std**2 + first**2) / (std**2 + last**2))
    end = (mean + (x - mean) * stretch) / first
    truth = np.ravel(-(end**2) / 2 - np.log(2 * np.pi) / 2 + np.log(stretch / first))

    def error(integrator, steps: int) -> float:
        times = grid(process, steps + 1)
        run = jax.jit(
            lambda x: log_likelihood(model, process, times, x, keys_of(x), ExactDivergence(), integrator)
        )
        return float(np.sqrt(np.mean(np.square(run(x) - truth))))

    for integrator, low, high in [(Heun(), 1.95, 2.1), (RungeKutta4(), 3.9, 4.4)]:
        coarse, fine = error(integrator, 64), error(integrator, 128)
        assert low < math.log2(coarse / fine) < high, (integrator, coarse, fine)
    assert fine < 1e-9


@pytest.mark.parametrize(
    ("process", "values"), [(PROCESSES[0], 1), (PROCESSES[2], 2)], ids=["VE-1d", "flow-2d"]
)
def test_pf_ode_nll_mixture(process, values):
    weights, stds = np.array([0.3, 0.7]), np.array([0.4, 0.7])
    means = np.array([[-1.0, 0.5], [0.8, -0.2]])[:, :values]
    model = Mixture(*map(jnp.asarray, (weights, means, stds))).denoiser(process)
    x = np.random.default_rng(0).normal(size=(5, values))
    last = math.exp(-4)
    variance = stds**2 + last**2
    square = np.sum((x[:, None] - means) ** 2, axis=-1)
    truth = np.log(
        np.sum(weights * np.exp(-square / 2 / variance) / (2 * np.pi * variance) ** (values / 2), 1)
    )
    times = LogSnrUniform(-46.0, 8.0)(process, 541)  # enough noise that noisy data are distributed like noise
    run = jax.jit(lambda x: log_likelihood(model, process, times, x, keys_of(x), ExactDivergence()))
    np.testing.assert_allclose(run(jnp.asarray(x).reshape(5, values, 1, 1)), truth, rtol=0, atol=2e-8)


def test_the_error_of_the_prior_is_as_documented():
    """With mean m, data cost on average m^2 / (2 s^2) nats more than under their exact density at the first time."""
    level, mean, std = 20.0, 1.0, 0.01
    process, data = PROCESSES[0], Gaussian(jnp.full((1, 1, 1, 1), mean), jnp.full((1, 1, 1, 1), std))
    times = LogSnrUniform(-2 * math.log(level), 10.0)(process, 201)
    last = math.exp(-5)
    z = jnp.asarray([-1.0, 1.0])  # these two have the mean and variance of a standard normal
    x = (mean + math.hypot(std, last) * z).reshape(2, 1, 1, 1)
    found = log_likelihood(data.denoiser(process), process, times, x, keys_of(x), ExactDivergence())
    own = -(z**2) / 2 - math.log(2 * math.pi * (std**2 + last**2)) / 2
    assert float(jnp.mean(own - found)) == pytest.approx(mean**2 / (2 * level**2), rel=1e-3)
    assert float(own[1] - found[1]) == pytest.approx(mean / level, rel=0.03)


@pytest.fixture(scope="module")
def with_probes():
    """The log-likelihood of a mixture in three dimensions, whose Jacobian is not diagonal, with stored probes."""
    process = PROCESSES[1]
    means = jnp.asarray([[-1.0, 0.5, 0.3], [0.8, -0.2, -0.6]])
    with jax.enable_x64(True):
        model = Mixture(jnp.asarray([0.3, 0.7]), means, jnp.asarray([0.2, 0.3])).denoiser(process)

    @jax.jit
    def run(vectors, x):
        times = LogSnrUniform(-6.0, 6.0)(process, 9)
        return log_likelihood(model, process, times, x, keys_of(x), Stored(vectors))

    return run


@pytest.mark.slow
def test_hutchinson_unbiased(with_probes):
    x = images()
    exact = np.asarray(with_probes(ExactDivergence().vectors(keys_of(x), x), x))
    # Any orthogonal basis gives the trace,
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0].reshape(3, 1, 1, 3, 1)
    np.testing.assert_allclose(with_probes(jnp.asarray(basis), x), exact, rtol=1e-10)
    # and so does the mean over all vectors of signs, of which a single one does not.
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=3))).reshape(8, 1, 1, 1, 3, 1)
    each = np.stack([with_probes(jnp.asarray(sign), x) for sign in signs])
    np.testing.assert_allclose(each.mean(axis=0), exact, rtol=1e-10)
    assert np.abs(each - exact).max() > 0.1
    together = with_probes(jnp.asarray(signs[:, 0] / math.sqrt(8)), x)
    np.testing.assert_allclose(together, exact, rtol=1e-10)


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_probes_have_their_distribution_and_differ_per_image(distribution):
    x = jnp.zeros((4096, 1, 3, 1))
    keys = keys_of(x)
    drawn = np.asarray(Hutchinson(2, distribution).vectors(keys, x))
    assert drawn.shape == (2, 4096, 1, 3, 1)
    flat = math.sqrt(2) * drawn.transpose(0, 1, 3, 2, 4).reshape(8192, 3)
    assert (set(np.unique(flat.round(6))) == {-1.0, 1.0}) == (distribution == "rademacher")
    np.testing.assert_allclose(flat.mean(axis=0), 0, atol=5 / math.sqrt(8192))
    np.testing.assert_allclose(flat.T @ flat / 8192, np.eye(3), atol=8 / math.sqrt(8192))
    np.testing.assert_allclose(np.mean(drawn[0] * drawn[1]) * 2, 0, atol=5 / math.sqrt(3 * 4096))
    some = jnp.asarray([7, 5])
    np.testing.assert_array_equal(Hutchinson(2, distribution).vectors(keys[some], x[:2]), drawn[:, [7, 5]])


def test_a_network_with_a_custom_gradient_works():
    """Norms define their reverse derivative by hand, and so have no forward one."""
    process = PROCESSES[0]
    x, times = images(), LogSnrUniform(-8.0, 8.0)(process, 5)

    @jax.custom_vjp
    def same(x):
        return x

    same.defvjp(lambda x: (x, None), lambda _, g: (g,))
    plain = gaussian().denoiser(process)
    found, truth = (
        log_likelihood(model, process, times, x, keys_of(x))
        for model in (lambda x, t: plain(same(x), t), plain)
    )
    np.testing.assert_allclose(found, truth, rtol=1e-12)


def test_single_precision_is_enough(float32):
    process = RectifiedFlow()
    x, times = images().astype(jnp.float32), LogSnrUniform(-8.0, 8.0)(process, 33)
    found = log_likelihood(gaussian().denoiser(process), process, times, x, keys_of(x), ExactDivergence())
    with jax.enable_x64(True):
        x = images()
        truth = log_likelihood(
            gaussian().denoiser(process), process, times.astype(float), x, keys_of(x), ExactDivergence()
        )
    np.testing.assert_allclose(found, truth, atol=2e-3)


def test_bpd_units_and_dequantisation():
    """The even density over all that 256 levels may become is 8 bits, whatever the shape."""
    levels = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
    values = np.stack(
        [dequantise(levels, jax.random.split(jax.random.key(seed), 1))[0] for seed in range(50)]
    )
    exact = np.arange(256).reshape(16, 16, 1) / 127.5 - 1
    assert np.abs(values - exact).max() <= 1 / 255 + 1e-6
    assert np.abs(values - exact).max() > 0.99 / 255
    np.testing.assert_allclose((values - exact).mean(), 0, atol=1e-4)
    np.testing.assert_array_equal(
        np.rint((values + 1) * 127.5), np.broadcast_to(np.arange(256).reshape(16, 16, 1), values.shape)
    )
    width = 256 * (2 / 255)
    for shape in [(1, 1, 1), (8, 8, 3)]:
        log_density = jnp.full(2, -math.prod(shape) * math.log(width))
        np.testing.assert_allclose(bits_per_dim(log_density, shape), 8, rtol=1e-12)


def test_dequantisation_noise_differs_per_image():
    levels = jnp.full((4, 2, 2, 1), 9, jnp.uint8)
    keys = keys_of(levels)
    values = dequantise(levels, keys)
    assert len(np.unique(values)) == 16
    np.testing.assert_array_equal(dequantise(levels[:2], keys[2:]), values[2:])


@pytest.mark.parametrize(
    "part", [ExactDivergence(), Hutchinson(4, "normal"), Heun(), RungeKutta4()], ids=repr
)
def test_parts_are_config_blocks(part):
    assert build(from_json(to_json(describe(part))), ("jaxdiff",)) == part


@pytest.mark.parametrize("arguments", [{"probes": 0}, {"distribution": "uniform"}])
def test_impossible_probes_are_errors(arguments):
    with pytest.raises(UserError, match=f"{next(iter(arguments))}="):
        Hutchinson(**arguments)
