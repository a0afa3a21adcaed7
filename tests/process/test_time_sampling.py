import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.schedule import Cosine, Linear
from jaxdiff.process.time_sampling import LogitNormal, LogNormalSigma, Uniform, UniformLogSnr, draw

PROCESSES = [
    VariancePreserving(Linear()),
    VariancePreserving(Cosine()),
    VarianceExploding(),
    RectifiedFlow(),
]
U = np.linspace(0.001, 0.999, 201)


def test_uniform_times():
    t = Uniform(0.2, 0.7).quantile(jnp.array(U), RectifiedFlow())
    np.testing.assert_allclose(t, stats.uniform(0.2, 0.5).ppf(U), rtol=1e-12)


def test_logit_normal_times():
    t = LogitNormal(0.3, 1.7).quantile(jnp.array(U), RectifiedFlow())
    np.testing.assert_allclose(
        np.log(np.asarray(t) / (1 - np.asarray(t))), stats.norm(0.3, 1.7).ppf(U), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_log_normal_noise_levels(process):
    alpha, sigma = map(np.asarray, process.signal(LogNormalSigma(-1.2, 1.2).quantile(jnp.array(U), process)))
    np.testing.assert_allclose(sigma / alpha, stats.lognorm(1.2, scale=np.exp(-1.2)).ppf(U), rtol=1e-7)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_uniform_log_snr(process):
    t = UniformLogSnr(-7.0, 9.0).quantile(jnp.array(U), process)
    np.testing.assert_allclose(process.log_snr(t), 9 - 16 * U, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    "law", [Uniform(), UniformLogSnr(-9.0, 9.0), LogitNormal(), LogNormalSigma()], ids=str
)
def test_more_u_is_more_noise_and_no_u_is_infinite(law, float32):
    for process in PROCESSES:
        t = law.quantile(jnp.asarray(np.linspace(0, 1, 201), jnp.float32), process)
        assert np.all(np.isfinite(t))
        assert np.all(np.diff(t) > 0)


def test_a_stratified_batch_has_one_time_in_every_stratum():
    t = draw(Uniform(), RectifiedFlow(), jax.random.key(0), 64)
    assert sorted(np.floor(np.asarray(t) * 64).astype(int)) == list(range(64))


@pytest.mark.parametrize("stratified", [True, False])
def test_each_place_of_the_batch_has_the_law(stratified):
    keys = jax.random.split(jax.random.key(1), 1000)
    one = jax.vmap(lambda key: draw(Uniform(), RectifiedFlow(), key, 4, stratified)[2])(keys)
    assert stats.kstest(np.asarray(one), "uniform").pvalue > 0.01


def test_independent_times_are_not_stratified():
    t = draw(Uniform(), RectifiedFlow(), jax.random.key(0), 4096, stratified=False)
    assert len(set(np.floor(np.asarray(t) * 4096).astype(int))) < 0.7 * 4096  # 1 - 1/e of the strata are hit


@pytest.mark.parametrize(
    "make",
    [
        lambda: Uniform(1.0, 0.0),
        lambda: UniformLogSnr(3.0, -3.0),
        lambda: LogitNormal(0.0, 0.0),
        lambda: LogNormalSigma(0.0, -1.0),
    ],
)
def test_impossible_laws_are_refused(make):
    with pytest.raises(UserError, match="Fix"):
        make()
