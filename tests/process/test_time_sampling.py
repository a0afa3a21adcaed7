import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdiff import config as configs
from jaxdiff.distributed import partitioning
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.schedule import Cosine, Linear
from jaxdiff.process.time_sampling import (
    History,
    Importance,
    LogitNormal,
    LogNormalSigma,
    LogUniformSigma,
    Uniform,
    UniformLogSnr,
    UniformSteps,
    uniforms,
)

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
def test_log_uniform_noise_levels(process):
    t = LogUniformSigma(0.02, 100.0).quantile(jnp.array(U), process)
    alpha, sigma = map(np.asarray, process.signal(t))
    np.testing.assert_allclose(sigma / alpha, stats.loguniform(0.02, 100.0).ppf(U), rtol=1e-7)


@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_uniform_steps_are_all_steps_equally_often(steps, float32):
    u = jnp.asarray((np.arange(4 * steps) + 0.5) / (4 * steps), jnp.float32)
    index, counts = np.unique(
        np.asarray(UniformSteps(steps).quantile(u, RectifiedFlow())), return_counts=True
    )
    np.testing.assert_allclose(index, np.arange(1, steps + 1) / steps, rtol=2e-7)
    np.testing.assert_array_equal(counts, 4)
    assert UniformSteps(steps).quantile(jnp.ones(1), RectifiedFlow()) == 1
    assert UniformSteps(steps).steps == steps
    assert Uniform().steps is None


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_uniform_log_snr(process):
    t = UniformLogSnr(-7.0, 9.0).quantile(jnp.array(U), process)
    np.testing.assert_allclose(process.log_snr(t), 9 - 16 * U, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    "sampler",
    [Uniform(), UniformLogSnr(-9.0, 9.0), LogitNormal(), LogNormalSigma(), LogUniformSigma()],
    ids=str,
)
def test_more_u_is_more_noise_and_no_u_is_infinite(sampler, float32):
    for process in PROCESSES:
        t = sampler.quantile(jnp.asarray(np.linspace(0, 1, 201), jnp.float32), process)
        assert np.all(np.isfinite(t))
        assert np.all(np.diff(t) > 0)


def test_a_stratified_batch_has_one_number_in_every_stratum():
    u = uniforms(jax.random.key(0), 64)
    assert sorted(np.floor(np.asarray(u) * 64).astype(int)) == list(range(64))


@pytest.mark.parametrize("stratified", [True, False])
def test_each_position_of_the_batch_has_the_distribution(stratified):
    keys = jax.random.split(jax.random.key(1), 1000)
    one = jax.vmap(lambda key: uniforms(key, 4, stratified)[2])(keys)
    assert stats.kstest(np.asarray(one), "uniform").pvalue > 0.01


def test_independent_numbers_are_not_stratified():
    u = uniforms(jax.random.key(0), 4096, stratified=False)
    assert len(set(np.floor(np.asarray(u) * 4096).astype(int))) < 0.7 * 4096  # 1 - 1/e of the strata are hit


def test_a_static_sampler_leaves_numbers_unchanged():
    u = jnp.array(U)
    chosen, weights = Uniform().choose(Uniform().init_history(), u)
    np.testing.assert_array_equal(chosen, u)
    np.testing.assert_array_equal(weights, 1)
    assert Uniform().update_history((), u, u) == ()


class Rule:
    """Nichol & Dhariwal's rule in plain Python: the last losses of each bin, one after the other."""

    def __init__(self, sampler):
        self.sampler = sampler
        self.losses = [collections.deque(maxlen=sampler.history) for _ in range(sampler.bins)]

    def update_history(self, bins, losses):
        for b, loss in zip(bins, losses, strict=True):
            self.losses[b].append(loss)

    def probabilities(self):
        if any(len(losses) < self.sampler.history for losses in self.losses):
            return np.full(self.sampler.bins, 1 / self.sampler.bins)
        size = np.array([np.sqrt(np.mean(np.square(losses))) for losses in self.losses])
        return (1 - self.sampler.uniform) * size / size.sum() + self.sampler.uniform / self.sampler.bins


def bins_of(sampler, u):
    return np.floor(np.asarray(u) * sampler.bins).astype(int)


@pytest.mark.parametrize(
    "sampler", [Importance(Uniform(), 5, 3, 0.01), Importance(UniformSteps(2), 2, 4, 0.3)]
)
def test_importance_is_the_rule_of_the_paper_on_random_losses(sampler):
    """Batches of 17 over 5 bins of 3: often more losses than a bin stores."""
    random, rule, history = np.random.default_rng(0), Rule(sampler), sampler.init_history()
    choose, update, probabilities = (
        jax.jit(sampler.choose),
        jax.jit(sampler.update_history),
        jax.jit(sampler.probabilities),
    )
    warm = 0
    for _ in range(30):
        u, weights = choose(history, jnp.asarray(random.random(17)))
        p = rule.probabilities()
        np.testing.assert_allclose(probabilities(history), p, rtol=1e-12)
        np.testing.assert_allclose(weights, 1 / (p[bins_of(sampler, u)] * sampler.bins), rtol=1e-12)
        losses = random.lognormal(size=17)
        history = update(history, u, jnp.asarray(losses))
        rule.update_history(bins_of(sampler, u), losses)
        for kept, expected in zip(np.asarray(history.losses), rule.losses, strict=True):
            np.testing.assert_array_equal(np.sort(kept[kept > 0]), np.sort(expected))
        warm += not np.allclose(p, p[0])
    assert 20 < warm < 30  # both the rule and what comes before it have been seen


def test_importance_waits_for_every_bin():
    sampler = Importance(Uniform(), bins=3, history=2)
    history = History(jnp.array([[9.0, 9.0], [1.0, 1.0], [4.0, 0.0]]), jnp.array([2, 7, 1], jnp.int32))
    np.testing.assert_allclose(sampler.probabilities(history), 1 / 3)
    history = sampler.update_history(history, jnp.array([0.9]), jnp.array([4.0]))
    expected = 0.999 * np.array([9, 1, 4]) / 14 + 0.001 / 3
    np.testing.assert_allclose(sampler.probabilities(history), expected, rtol=1e-12)


def test_importance_finds_the_root_mean_square_of_a_known_loss():
    """The optimal proposal of an estimator of a mean (Nichol & Dhariwal 2021, equation 18)."""
    sampler, random = (
        Importance(UniformSteps(4), bins=4, history=400, uniform=0.001),
        np.random.default_rng(1),
    )
    mean, spread = np.array([3.0, 1.0, 0.2, 0.05]), np.array([0.1, 2.0, 0.2, 0.0])
    history, update, choose = sampler.init_history(), jax.jit(sampler.update_history), jax.jit(sampler.choose)
    for i in range(40):
        u, _ = choose(history, uniforms(jax.random.key(i), 256))
        b = bins_of(sampler, u)
        history = update(history, u, jnp.asarray(mean[b] + spread[b] * random.choice([-1.0, 1.0], 256)))
    size = np.hypot(mean, spread)
    expected = 0.999 * size / size.sum() + 0.001 / 4
    np.testing.assert_allclose(sampler.probabilities(history), expected, rtol=0.03)


def test_importance_sampling_is_unbiased():
    """Exactly: the probability of each bin times its weight is uniform, and so is the distribution within a bin."""
    sampler = Importance(Uniform(), bins=6, history=1, uniform=0.1)
    history = History(jnp.array([[5.0], [1.0], [0.01], [2.0], [0.3], [1.0]]), jnp.ones(6, jnp.int32))
    p, n = sampler.probabilities(history), 120_000
    fine, weights = sampler.choose(history, jnp.asarray((np.arange(n) + 0.5) / n))
    counts = np.bincount(bins_of(sampler, fine), minlength=6)
    np.testing.assert_allclose(counts / n, p, atol=1.1 / n)
    for b in range(6):
        inside = np.asarray(fine)[bins_of(sampler, fine) == b]
        np.testing.assert_allclose(np.diff(inside), 1 / (6 * counts[b]), rtol=1e-3)
    np.testing.assert_allclose(
        p * np.asarray(sampler.choose(history, jnp.cumsum(p) - p / 2)[1]), 1 / 6, rtol=1e-12
    )
    for function in (np.sin, np.exp, np.square):
        found = np.mean(np.asarray(weights) * function(np.asarray(fine)))
        np.testing.assert_allclose(found, np.mean(function((np.arange(n) + 0.5) / n)), rtol=1e-4)


@pytest.mark.slow
def test_no_number_leaves_its_bin_by_rounding(float32):
    """The weight that a number was given is that of the bin in which its loss is kept, on all edges."""
    sampler = Importance(UniformSteps(1000), bins=1000, history=1)
    losses = np.random.default_rng(2).lognormal(0, 2, (1000, 1)).astype(np.float32)
    history = History(jnp.asarray(losses), jnp.ones(1000, jnp.int32))
    p = sampler.probabilities(history)
    edges = jnp.cumsum(p)
    near = [jnp.nextafter(edges, jnp.float32(0)), edges, jnp.nextafter(edges, jnp.float32(2))]
    u, weights = sampler.choose(history, jnp.clip(jnp.concatenate([*near, jnp.linspace(0, 1, 5001)]), 0, 1))
    after = sampler.update_history(history, u, jnp.ones_like(u))
    counted = np.asarray(after.counts) - 1
    np.testing.assert_allclose(weights, 1 / (1000 * np.asarray(p)[bins_of(sampler, u)]), rtol=1e-6)
    np.testing.assert_array_equal(counted, np.bincount(bins_of(sampler, u), minlength=1000))
    steps = np.round(np.asarray(sampler.quantile(u, RectifiedFlow())) * 1000).astype(int)
    np.testing.assert_array_equal(steps, bins_of(sampler, u) + 1)


def test_importance_does_not_depend_on_the_number_of_devices():
    sampler, random = Importance(Uniform(), 8, 2), np.random.default_rng(3)
    u, losses = jnp.asarray(random.random(64)), jnp.asarray(random.lognormal(size=64))
    mesh = MeshShape().make(jax.devices())
    shared = partitioning.batch_sharding(mesh)

    def twice(u, losses):
        history = sampler.update_history(sampler.init_history(), u, losses)
        chosen, weights = sampler.choose(history, u)
        return sampler.update_history(history, chosen, losses * weights), chosen

    one = jax.jit(twice)(u, losses)
    eight = jax.jit(twice)(*jax.device_put((u, losses), shared))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), one, eight)
    assert len(set(np.asarray(one[1]) - np.asarray(u))) > 1


@pytest.mark.parametrize(
    "sampler",
    [
        UniformSteps(50),
        LogUniformSigma(0.1, 9.0),
        Importance(UniformSteps(50), 25, 3, 0.2),
        Importance(Uniform()),
    ],
    ids=str,
)
def test_samplers_survive_json(sampler):
    block = configs.from_json(configs.to_json(configs.describe(sampler)))
    assert configs.build(block, packages=("jaxdiff",)) == sampler


@pytest.mark.parametrize(
    "make",
    [
        lambda: Uniform(1.0, 0.0),
        lambda: UniformLogSnr(3.0, -3.0),
        lambda: LogitNormal(0.0, 0.0),
        lambda: LogNormalSigma(0.0, -1.0),
        lambda: LogUniformSigma(0.0, 1.0),
        lambda: LogUniformSigma(2.0, 1.0),
        lambda: UniformSteps(0),
        lambda: Importance(bins=0),
        lambda: Importance(history=0),
        lambda: Importance(uniform=0.0),
        lambda: Importance(uniform=1.1),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(UserError, match="Fix"):
        make()


def test_no_number_leaves_the_last_bin_by_rounding(float32):
    """In single precision the probabilities of 700 bins add up to less than the largest uniform number."""
    sampler = Importance(bins=700)
    assert jnp.cumsum(sampler.probabilities(sampler.init_history()))[-1] < 1
    u, _ = sampler.choose(sampler.init_history(), jnp.nextafter(jnp.ones(1), jnp.zeros(1)))
    assert 1 - 1 / sampler.bins < u[0] < 1
