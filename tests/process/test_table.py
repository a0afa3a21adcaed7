import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.errors import UserError
from jaxdiff.process import transition
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.schedule import Linear, ScaledLinear
from jaxdiff.process.table import Betas, CosineBetas, LinearBetas, ScaledLinearBetas, SigmoidBetas, Table

TABLES = [
    Table(LinearBetas()),
    Table(CosineBetas()),
    Table(ScaledLinearBetas(), zero_terminal_snr=True),
    Table(Betas((0.1, 0.5, 0.2, 0.9))),
    Table(Betas((0.1, 0.5, 0.2)), zero_terminal_snr=True),
    Table(ScaledLinearBetas(), zero_terminal_snr=True, last_alpha_squared=2.0**-24),
    Table(Betas((0.1, 0.5, 0.2, 0.9)), linear="sigma / alpha"),
    Table(ScaledLinearBetas(), linear="sigma / alpha"),
]
each_table = pytest.mark.parametrize("table", TABLES, ids=str)


@functools.cache
def goldens():
    return np.load(pathlib.Path(__file__).parents[1] / "goldens" / "tables.npz")


@functools.partial(jax.jit, static_argnums=0)
def there_and_back(table, t):
    log_snr = table.log_snr(t)
    return log_snr, table.time(log_snr)


@functools.partial(jax.jit, static_argnums=0)
def back_and_there(table, log_snr):
    return table.log_snr(table.time(log_snr))


@functools.partial(jax.jit, static_argnums=0)
def signal(table, t):
    return VariancePreserving(table).signal(t)


def times(table):
    return (jnp.arange(table.steps) + 1) / table.steps


@pytest.mark.spread(5)
@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("guided/linear/alphas_cumprod", Table(LinearBetas(1e-4, 0.02, 1000))),
        ("guided/cosine/alphas_cumprod", Table(CosineBetas(1000))),
        ("diffusers/linear", Table(LinearBetas())),
        ("diffusers/scaled_linear", Table(ScaledLinearBetas())),
        ("diffusers/squaredcos_cap_v2", Table(CosineBetas())),
        ("diffusers/sigmoid", Table(SigmoidBetas())),
        ("diffusers/scaled_linear_zero_snr", Table(ScaledLinearBetas(), zero_terminal_snr=True)),
    ],
)
def test_tables_match_other_libraries(name, table):
    alpha, sigma = signal(table, times(table)[goldens()["index"]])
    expected = goldens()[name]
    np.testing.assert_allclose(alpha**2, expected, rtol=1e-10, atol=0)
    np.testing.assert_allclose(sigma**2, 1 - expected, rtol=1e-10)


@pytest.mark.parametrize(("name", "betas"), [("linear", LinearBetas()), ("cosine", CosineBetas())])
def test_the_reverse_step_is_guided_diffusions(name, betas):
    process, index = VariancePreserving(Table(betas)), goldens()["index"]
    s, t = index / 1000, (index + 1) / 1000
    of = {key: goldens()[f"guided/{name}/{key}"] for key in ("posterior_variance", "betas")}
    first, second = (goldens()[f"guided/{name}/posterior_mean_coef{i}"] for i in (1, 2))
    s, t = jnp.asarray(s), jnp.asarray(t)
    np.testing.assert_allclose(
        transition.posterior_std(process, s, t) ** 2, of["posterior_variance"], rtol=1e-9
    )
    np.testing.assert_allclose(transition.forward(process, s, t).sigma ** 2, of["betas"], rtol=1e-9)
    # Their mean is coef1 x_0 + coef2 x_t.
    x_0, noise = (
        jnp.asarray(it).reshape(-1, 1, 1, 1) for it in np.random.default_rng(0).normal(size=(2, len(t)))
    )
    alpha, sigma = (it.reshape(-1, 1, 1, 1) for it in process.signal(t))
    mean = transition.posterior_mean(process, s, t, x_0, noise).ravel()
    x_t = alpha * x_0 + sigma * noise
    np.testing.assert_allclose(mean, first * x_0.ravel() + second * x_t.ravel(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("table", [table for table in TABLES if not table.zero_terminal_snr], ids=str)
def test_alpha_is_the_product_of_the_betas(table):
    alpha, _ = signal(table, times(table))
    np.testing.assert_allclose(alpha**2, np.cumprod(1 - table.betas.array()), rtol=1e-11)
    assert table.steps == len(table.betas.array())


def test_zero_terminal_snr_keeps_the_first_alpha_and_scales_the_others():
    """Lin et al. 2023, algorithm 1."""
    betas = ScaledLinearBetas(steps=100, first=0.0085, last=0.12)
    before, _ = signal(Table(betas), times(Table(betas)))
    table = Table(betas, zero_terminal_snr=True)
    after, sigma = signal(table, times(table))
    assert table.steps == 100
    assert after[-1] == 0
    assert sigma[-1] == 1
    assert table.log_snr(jnp.ones(1)) == -np.inf
    np.testing.assert_allclose(after[0], before[0], rtol=1e-12)
    scale = np.diff(after) / np.diff(before)
    np.testing.assert_allclose(scale, scale[0], rtol=1e-9)


@pytest.mark.spread(2)
@each_table
def test_a_table_falls_and_is_inverted_between_its_steps(table):
    t = jnp.asarray(np.concatenate([[0], np.logspace(-9, -3, 20), np.linspace(0.002, 1, 2001)]))
    log_snr, back = there_and_back(table, t)
    assert np.all(np.diff(log_snr) < 0)
    assert not np.any(np.isnan(log_snr))
    np.testing.assert_allclose(back, t, rtol=1e-10)
    assert log_snr[0] == np.inf
    # The other way round, in and beyond the table.
    level = np.linspace(-40, 40, 201)
    np.testing.assert_allclose(back_and_there(table, jnp.asarray(level)), level, rtol=1e-9, atol=1e-9)


@pytest.mark.spread(5)
@each_table
def test_levels_between_two_steps_are_as_documented(table):
    steps = table.steps
    t = np.arange(1, steps + 1) / steps
    beyond = [0.1 / steps, 1 - 0.1 / steps, 1 + 0.5 / steps]
    log_snr, _ = there_and_back(table, jnp.asarray(np.concatenate([t, (t[:-1] + t[1:]) / 2, beyond])))
    log_snr, middle, (first, last, above) = np.split(np.asarray(log_snr), [steps, 2 * steps - 1])
    reaches_noise = table.zero_terminal_snr and table.last_alpha_squared == 0
    inner = slice(steps - 1 - reaches_noise)

    def between(value, fraction):
        """A fraction of the way from one step to the next."""
        if table.linear == "log_snr":
            return (1 - fraction) * value[:-1] + fraction * value[1:]
        level = np.exp(-value / 2)
        return -2 * np.log((1 - fraction) * level[:-1] + fraction * level[1:])

    np.testing.assert_allclose(middle[inner], between(log_snr, 0.5)[inner], rtol=1e-9, atol=1e-9)
    # sigma / alpha is proportional to t before the first step, alpha / sigma to 1 - t before pure noise.
    np.testing.assert_allclose(first, log_snr[0] + 2 * np.log(10), rtol=1e-9)
    if reaches_noise:
        np.testing.assert_allclose(last, log_snr[-2] - 2 * np.log(10), rtol=1e-9)
    else:
        np.testing.assert_allclose(last, between(log_snr, 0.9)[-1], rtol=1e-9)
        np.testing.assert_allclose(above, between(log_snr, 1.5)[-1], rtol=1e-9)


def test_a_last_step_with_a_given_alpha():
    plain, given = (
        Table(ScaledLinearBetas(), zero_terminal_snr=True, last_alpha_squared=last) for last in (0.0, 1e-8)
    )
    assert given.steps == plain.steps == 1000
    alpha, expected = (signal(table, times(table)).alpha for table in (given, plain))
    np.testing.assert_allclose(alpha[-1] ** 2, 1e-8, rtol=1e-9)
    np.testing.assert_allclose(alpha[:-1], expected[:-1], rtol=1e-12)


@pytest.mark.spread(3)
@each_table
def test_slopes_are_finite_for_finite_levels(table):
    t = (jnp.asarray(np.unique(np.linspace(0, table.steps - 1, 50).astype(int))) + 0.37) / table.steps

    @jax.jit
    def slopes(t, h):
        log_snr, slope = jax.jvp(table.log_snr, (t,), (jnp.ones_like(t),))
        _, back = jax.jvp(table.time, (log_snr,), (slope,))
        return slope, (table.log_snr(t + h) - table.log_snr(t - h)) / (2 * h), back

    slope, differences, back = slopes(t, 1e-8)
    np.testing.assert_allclose(slope, differences, rtol=1e-5)
    np.testing.assert_allclose(back, 1, rtol=1e-7)


@pytest.mark.spread(3)
@each_table
def test_single_precision_is_double_precision(table, float32):
    t = np.concatenate([[0], np.logspace(-6, -1, 100), 1 - np.logspace(-5, -1, 101), [1]]).astype(np.float32)
    with jax.enable_x64(True):
        exact = signal(table, jnp.asarray(t, jnp.float64))
    for found, truth in zip(signal(table, jnp.asarray(t)), exact, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, truth, rtol=1e-4)


@pytest.mark.parametrize(
    ("betas", "limit"),
    [
        (LinearBetas(1e-6, 2e-4, 100_000), Linear(0.1, 20.0)),
        (ScaledLinearBetas(8.5e-6, 1.2e-4, 100_000), ScaledLinear()),
    ],
)
def test_many_small_betas_are_the_continuous_schedule(betas, limit):
    t = jnp.asarray(np.linspace(0.1, 1, 201))
    np.testing.assert_allclose(Table(betas).log_snr(t), limit.log_snr(t), atol=2e-3)


@each_table
def test_configs_build_the_same_table(table):
    block = describe(table)
    assert build(block) == build(from_json(to_json(block))) == table


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearBetas(0.0),
        lambda: LinearBetas(last=1.0),
        lambda: ScaledLinearBetas(first=-0.1),
        lambda: ScaledLinearBetas(last=1.0),
        lambda: SigmoidBetas(first=0.0),
        lambda: SigmoidBetas(last=2.0),
        lambda: CosineBetas(max_beta=1.0),
        lambda: CosineBetas(s=-0.1),
        lambda: Betas((0.1, 1.0, 0.2)),
        lambda: Table(Betas((0.1, 0.2))),
        lambda: Table(LinearBetas(), last_alpha_squared=1e-6),
        lambda: Table(LinearBetas(), zero_terminal_snr=True, last_alpha_squared=-1e-6),
        lambda: Table(LinearBetas(), zero_terminal_snr=True, last_alpha_squared=0.5),
        lambda: Table(LinearBetas(), linear="sigma"),
    ],
)
def test_impossible_numbers_are_refused(make):
    with pytest.raises(UserError, match="Fix"):
        make()
