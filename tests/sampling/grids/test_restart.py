"""Grids that return to noise: the order of steps in the papers, and the distribution of samples."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.learned import LearnedVariancePreserving
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling import loop
from jaxdiff.sampling.grids.continuous import Karras, LogSnrUniform, Uniform
from jaxdiff.sampling.grids.restart import RePaint, Restart
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.protocols import SamplerState
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.heun import Euler, Heun
from jaxdiff.sampling.samplers.pndm import Pndm
from tests.oracles import Counting, Gaussian
from tests.sampling.solving import Draws

PROCESSES = [VariancePreserving(Cosine()), VarianceExploding(), RectifiedFlow()]
BASE = Karras(0.02, 20.0)


def levels(process, t):
    alpha, sigma = map(np.asarray, process.signal(t))
    return sigma / alpha


def papers_repaint(total, jump_length, repeats):
    """The indices of noise levels that are visited, from the noisiest, total - 1, to clean data, -1.

    Lugmayr et al. 2022, appendix B: down one level at a time; on reaching a multiple of the jump length that has
    jumps left, up by the jump length.
    """
    left = dict.fromkeys(range(0, total - jump_length, jump_length), repeats - 1)
    level, visited = total - 1, [total - 1]
    while level >= 0:
        if left.get(level, 0) > 0:
            left[level] -= 1
            for _ in range(jump_length):
                level += 1
                visited.append(level)
        level -= 1
        visited.append(level)
    return np.array(visited)


@pytest.mark.spread(3)
@pytest.mark.parametrize(
    ("total", "jump_length", "repeats"),
    [(250, 10, 10), (20, 5, 3), (21, 5, 1), (7, 3, 2), (5, 5, 4), (6, 1, 2), (1, 1, 2)],
)
def test_repaint_visits_the_papers_steps(total, jump_length, repeats):
    visited = papers_repaint(total, jump_length, repeats)
    down = np.flatnonzero(np.diff(visited) < 0)[:-1]  # the last step is the jump to clean data
    path = RePaint(Uniform(), jump_length, repeats)(RectifiedFlow(), total)
    np.testing.assert_allclose(path.start, (visited[down] + 1) / total, rtol=1e-12)
    np.testing.assert_allclose(path.end, (visited[down + 1] + 1) / total, rtol=1e-12)
    recipe = Recipe(Euler(), RePaint(Uniform(), jump_length, repeats), ClassifierFree(), total)
    assert recipe.calls(RectifiedFlow()) == np.sum(np.diff(visited) < 0)


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "calls"), [(Euler(), 13 + 1), (Pndm(), 13 + 3 * 12 + 1)], ids=str)
def test_repaint_makes_the_promised_number_of_calls(sampler, calls):
    """Levels 6543, 543, 54321, 321 and 321: 13 steps, and the jump. `Pndm` takes 3 more calls for up to 3 of a run."""
    recipe = Recipe(sampler, RePaint(Uniform(), 2, 3), ClassifierFree(), 6)
    counting = Counting(
        lambda x, t, fields, drop: Gaussian(jnp.zeros(()), jnp.ones(())).denoiser(RectifiedFlow())(x, t)
    )
    with jax.disable_jit():
        recipe(counting, RectifiedFlow(), {}, (1, 1, 1), jax.random.split(jax.random.key(0), 1))
    assert counting.calls == recipe.calls(RectifiedFlow()) == calls


@pytest.mark.spread(2)
@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_restart_goes_back_to_s_max_from_the_level_nearest_s_min(process):
    """Xu et al. 2023, algorithm 1: the base down to s_min, K times from s_max to there, and the rest of the base."""
    base, grid = levels(process, BASE(process, 9)), Restart(BASE, 0.3, 2.0, repeats=3, steps=4, rho=5.0)
    turn = np.argmin(np.abs(np.log(base) - np.log(0.3)))
    again = np.linspace(2.0**0.2, base[turn] ** 0.2, 5) ** 5
    start = np.concatenate([base[:turn], np.tile(again[:-1], 3), base[turn:-1]])
    end = np.concatenate([base[1 : turn + 1], np.tile(again[1:], 3), base[turn + 1 :]])
    path = grid(process, 9)
    np.testing.assert_allclose(levels(process, path.start), start, rtol=1e-9)
    np.testing.assert_allclose(levels(process, path.end), end, rtol=1e-9)
    rises = np.flatnonzero(np.asarray(path.start)[1:] > np.asarray(path.end)[:-1]) + 1
    np.testing.assert_array_equal(rises, turn + 4 * np.arange(3))
    assert Recipe(Heun(), grid, ClassifierFree(), 9).calls(process) == 2 * (8 + 12) + 1


def test_restart_returns_from_below_s_max_only():
    """Among the levels exp(2, 1, 0, -1, -2) the nearest to exp(-0.45) is 1, but exp(-0.4) is below it."""
    base, process = LogSnrUniform(-4.0, 4.0), VarianceExploding()
    path = Restart(base, math.exp(-0.45), math.exp(-0.4), repeats=1, steps=1)(process, 5)
    np.testing.assert_allclose(np.log(levels(process, path.start)), [2, 1, 0, -0.4, -1], atol=1e-9)
    np.testing.assert_allclose(np.log(levels(process, path.end)), [1, 0, -1, -1, -2], atol=1e-9)


@pytest.mark.parametrize(
    "grid", [RePaint(BASE, 2, 1), RePaint(BASE, 9, 3), Restart(BASE, repeats=0)], ids=str
)
def test_a_restart_with_no_repetitions_is_the_base_grid(grid):
    times, path = BASE(VarianceExploding(), 9), grid(VarianceExploding(), 9)
    np.testing.assert_array_equal(path.start, times[:-1])
    np.testing.assert_array_equal(path.end, times[1:])


@pytest.mark.parametrize("grid", [RePaint(BASE, 2, 3), Restart(BASE, 0.3, 2.0, 2, 3)], ids=str)
def test_every_step_falls_and_none_begins_below_the_end_of_the_last(grid, float32):
    """Exactly, also in a compiled program: a rounding error would count as a return to noise."""
    module = LearnedVariancePreserving(log_snr_min=-7.0, width=8)
    learned = module.apply({"params": module.init(jax.random.key(0))["params"]})
    for process in [*PROCESSES, learned]:
        path = jax.jit(lambda grid=grid, process=process: grid(process, 9))()
        start, end = map(np.asarray, path)
        assert np.all(start > end)
        assert np.sum(start[1:] > end[:-1]) == (8 if isinstance(grid, RePaint) else 2)
        assert np.all(start[1:] >= end[:-1])


def test_restarts_of_a_learned_process_depend_on_its_parameters():
    """The position of a restart depends on the parameters; the number of steps does not."""
    module, grid = LearnedVariancePreserving(width=8), Restart(Uniform(), 0.3, 2.0, 2, 3)
    params = module.init(jax.random.key(0))["params"]

    @jax.jit
    def path(params):
        process = module.apply({"params": params})
        return process.log_snr(Uniform()(process, 9)), grid(process, 9)

    turns = []
    for moved in (0.0, 3.0):
        log_snr, (start, end) = path({**params, "gamma_0": params["gamma_0"] - moved})
        distance = np.abs(-np.asarray(log_snr) / 2 - math.log(0.3))
        turns.append(np.argmin(distance))
        rises = np.flatnonzero(np.asarray(start)[1:] > np.asarray(end)[:-1]) + 1
        np.testing.assert_array_equal(rises, turns[-1] + 3 * np.arange(2))
    assert turns[0] > turns[1]


@dataclasses.dataclass(frozen=True)
class Exact:
    """The exact solution of the probability flow, in place of a sampler."""

    oracle: Gaussian

    def calls(self, steps):
        return steps

    def init(self, x):
        return SamplerState(x)

    def step(self, denoise, process, state, t, t_next, keys):
        return SamplerState(self.oracle.flow(process, state.x, t, t_next))


@pytest.mark.slow
@pytest.mark.spread(1)
@pytest.mark.parametrize("process", PROCESSES[::2], ids=str)
@pytest.mark.parametrize("grid", [RePaint(BASE, 2, 2), Restart(BASE, 0.3, 2.0, 2, 2)], ids=str)
def test_data_with_the_right_distribution_keep_it(grid, process):
    """An image is affine in its initial noise and in that of every return; the weights give its exact distribution.

    Pixel k of the image carries source k alone: pixel 0 the first noise, pixel k + 1 that of step k.
    """
    path, std = grid(process, 6), 0.6
    sources = 1 + len(path.start)
    draws = jnp.eye(sources)[1:].reshape(-1, 1, 1, sources, 1)
    marginal = lambda t: np.hypot(np.asarray(process.signal(t).alpha) * std, process.signal(t).sigma)  # noqa: E731
    x = jnp.zeros((1, 1, sources, 1)).at[0, 0, 0, 0].set(marginal(path.start[0]))
    oracle, keys = Gaussian(jnp.zeros(()), jnp.asarray(std)), jax.random.split(jax.random.key(0), 1)
    with jax.disable_jit(), Draws(draws):
        found = loop.integrate(Exact(oracle), oracle.denoiser(process), process, path, x, keys)
    weights = np.asarray(found).ravel()
    np.testing.assert_allclose(np.linalg.norm(weights), marginal(path.end[-1]), rtol=1e-9)
    rises = np.flatnonzero(np.asarray(path.start)[1:] > np.asarray(path.end)[:-1]) + 1
    np.testing.assert_array_equal(np.flatnonzero(weights), [0, *(rises + 1)])


@pytest.mark.parametrize("grid", [RePaint(BASE), Restart(BASE)], ids=str)
def test_configs_build_the_same_grid(grid):
    block = describe(grid)
    assert build(block) == build(from_json(to_json(block))) == grid


@pytest.mark.spread(5)
@pytest.mark.parametrize(
    "make",
    [
        lambda: Restart(BASE, s_min=0.0),
        lambda: Restart(BASE, 1.0, 1.0),
        lambda: Restart(BASE, repeats=-1),
        lambda: Restart(BASE, steps=0),
        lambda: Restart(BASE, rho=0.0),
        lambda: RePaint(BASE, jump_length=0),
        lambda: RePaint(BASE, repeats=0),
        lambda: RePaint(RePaint(BASE))(VarianceExploding(), 30),
        lambda: Restart(Restart(BASE))(VarianceExploding(), 30),
    ],
)
def test_impossible_numbers_are_refused(make):
    with pytest.raises(UserError, match="Fix"):
        make()
