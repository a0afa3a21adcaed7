import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.process.conversion import adapt, convert
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving, diffuse
from jaxdiff.process.schedule import Cosine, Linear
from jaxdiff.process.table import ScaledLinearBetas, Table
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.loop import integrate
from jaxdiff.sampling.samplers.ddim import Ddim
from tests.oracles import Gaussian, Mixture

PROCESSES = [
    VariancePreserving(Linear()),
    VariancePreserving(Cosine()),
    VariancePreserving(Table(ScaledLinearBetas(), zero_terminal_snr=True)),
    VarianceExploding(),
    RectifiedFlow(),
]
NEXT = [*PROCESSES[3:], *PROCESSES[:3]]
each_pair = pytest.mark.parametrize(
    ("source", "target"), [*zip(PROCESSES, NEXT, strict=True), *zip(NEXT, PROCESSES, strict=True)], ids=str
)


def a_pair():
    return map(jnp.asarray, np.random.default_rng(0).normal(size=(2, 5, 2, 2, 1)))


jitted = jax.jit(convert, static_argnums=(0, 1))


@pytest.mark.spread(3)
@each_pair
def test_conversion_keeps_data_and_noise(source, target):
    x_0, noise = a_pair()
    t = jnp.array([0.03, 0.2, 0.5, 0.8, 0.99])
    x_source = diffuse(source, x_0, noise, t)
    x, t_target = jitted(source, target, x_source, t)
    np.testing.assert_allclose(target.log_snr(t_target), source.log_snr(t), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(x, diffuse(target, x_0, noise, t_target), rtol=1e-9, atol=1e-9)
    back, t_back = jitted(target, source, x, t_target)
    np.testing.assert_allclose(t_back, t, rtol=1e-9)
    np.testing.assert_allclose(back, x_source, rtol=1e-9, atol=1e-9)
    one, _ = jitted(source, target, x_source, t[2])
    np.testing.assert_allclose(one[2], x[2], rtol=1e-12)


@pytest.mark.spread(3)
@pytest.mark.parametrize("target", PROCESSES, ids=str)
def test_ends_are_mapped_to_ends(target):
    x_0, noise = a_pair()
    for t, end in ((jnp.array(0.0), 0), (jnp.array(1.0), 1)):
        x, t_target = convert(RectifiedFlow(), target, diffuse(RectifiedFlow(), x_0, noise, t), t)
        np.testing.assert_allclose(t_target, end, atol=1e-12)
        alpha, sigma = target.signal(t_target)
        np.testing.assert_allclose(x, (sigma * noise, alpha * x_0)[end == 0], rtol=1e-12)


def a_mixture():
    rng = np.random.default_rng(1)
    return Mixture(jnp.array([0.3, 0.7]), jnp.asarray(rng.normal(size=(2, 4))), jnp.array([0.4, 0.7]))


@functools.partial(jax.jit, static_argnums=(0, 1))
def paths(source, target, noise):
    """A path in `target`, once with its own exact denoiser and once with that of `source`."""
    times, keys = Karras(0.05, 20.0)(target, 5), jax.random.split(jax.random.key(0), 5)
    x = target.signal(times[0]).sigma * noise
    denoisers = (a_mixture().denoiser(target), adapt(a_mixture().denoiser(source), source, target))
    return [integrate(Ddim(), denoise, target, times, x, keys) for denoise in denoisers]


@pytest.mark.spread(2)
@pytest.mark.parametrize(("source", "target"), list(zip(PROCESSES, NEXT, strict=True)), ids=str)
def test_a_model_of_another_process_draws_the_same_path(source, target):
    own, adapted = paths(source, target, next(a_pair()))
    np.testing.assert_allclose(adapted, own, rtol=1e-9, atol=1e-9)


@each_pair
def test_an_adapted_oracle_is_the_oracle(source, target):
    x, _ = a_pair()
    oracle = Gaussian(jnp.asarray(0.3), jnp.asarray(0.6))
    found = adapt(oracle.denoiser(source), source, target)(x, jnp.asarray(0.6))
    for ours, theirs in zip(found[:2], oracle.denoiser(target)(x, jnp.asarray(0.6))[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
