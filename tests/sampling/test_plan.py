"""The steps of recipes: parts, steps of one length, bounds on orders, and the initial noise."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VariancePreserving
from jaxdiff.process.labels import RoundedIndex
from jaxdiff.process.table import ScaledLinearBetas, Table
from jaxdiff.sampling.grids.continuous import Uniform
from jaxdiff.sampling.grids.discrete import Leading, Linspace, Trailing
from jaxdiff.sampling.grids.restart import RePaint, Restart
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.loop import as_path
from jaxdiff.sampling.modifiers.inpainting import Replacement
from jaxdiff.sampling.plan import with_end
from jaxdiff.sampling.protocols import KnownData
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver3M
from jaxdiff.sampling.samplers.heun import Heun
from tests.oracles import Counting
from tests.sampling.solving import QUICK, mixture
from tests.selection import some

PROCESS, FLOW = VariancePreserving(Table(ScaledLinearBetas())), RectifiedFlow()
SHAPE, KEYS = (1, 1, 2), jax.random.split(jax.random.key(0), 3)
NOISE = np.random.default_rng(0).normal(size=(3, *SHAPE))
OFF = ClassifierFree()


def run(recipe, process=PROCESS, denoise=None, **start):
    denoise = denoise or mixture().denoiser(process)
    start = {name: jax.tree.map(jnp.asarray, value) for name, value in start.items()}
    return recipe(lambda x, t, conditions, drop: denoise(x, t), process, {}, SHAPE, KEYS, **start)


def compiled(recipe, **start):
    return jax.jit(lambda start: run(recipe, **start), compiler_options=QUICK)(start)


PARTS = {
    "jump": Recipe(Ddim(1.0), Uniform(0.9), OFF, 7),
    "two calls": Recipe(Heun(), Uniform(0.9), OFF, 7),
    "first step": Recipe(Ddim(1.0), Leading(offset=1), OFF, 10, t_end=1 / 1000),
    "one length": Recipe(Ddim(1.0), Trailing(), OFF, 7, fixed_stride=1000),
}


@pytest.mark.slow
@pytest.mark.spread(1)
@pytest.mark.parametrize("recipe", PARTS.values(), ids=PARTS)
def test_two_parts_are_the_whole(recipe):
    """With the noise of every step, wherever a sampler without memory is interrupted."""
    whole = compiled(recipe, noise=NOISE)
    for t in (0.2, 0.5, 0.7):
        first, second = dataclasses.replace(recipe, until=t), dataclasses.replace(recipe, below=t)
        x = compiled(first, noise=NOISE)
        assert np.all(np.abs(x - whole) > 1e-6)
        np.testing.assert_allclose(compiled(second, x=x), whole, rtol=1e-7)
        if recipe.fixed_stride is None:
            assert first.calls(PROCESS) + second.calls(PROCESS) == recipe.calls(PROCESS)


def test_a_middle_part_and_an_empty_rest():
    recipe = Recipe(Ddim(), Uniform(), OFF, 10)  # times 1, 0.9, ..., 0.1
    middle = dataclasses.replace(recipe, below=0.8, until=0.4).plan(FLOW)
    np.testing.assert_allclose(middle.times, [0.7, 0.6, 0.5, 0.4, 0.3], rtol=1e-6)
    assert not middle.jumps
    last = dataclasses.replace(recipe, below=0.15).plan(FLOW)
    np.testing.assert_allclose(last.times, [0.1], rtol=1e-6)
    assert last.jumps
    everything = dataclasses.replace(recipe, until=0.05).plan(FLOW)
    assert everything.jumps
    assert len(everything.times) == 10
    for changes in ({"below": 0.1}, {"below": 0.5, "until": 0.5}):
        with pytest.raises(UserError, match=r"below=.*a time that leaves a step"):
            dataclasses.replace(recipe, **changes).plan(FLOW)
    with pytest.raises(UserError, match=r"until=1.5: expected a time that leaves a step"):
        dataclasses.replace(recipe, until=1.5).plan(FLOW)


def test_bounds_on_orders_are_those_of_the_whole():
    recipe = Recipe(DpmSolver3M(), Uniform(), OFF, 6, lower_order_final=True)
    whole = recipe.plan(FLOW).max_orders
    np.testing.assert_array_equal(whole, [6, 5, 4, 3, 2])
    np.testing.assert_array_equal(dataclasses.replace(recipe, until=0.5).plan(FLOW).max_orders, whole[:4])
    np.testing.assert_array_equal(dataclasses.replace(recipe, below=0.5).plan(FLOW).max_orders, whole[4:])


@pytest.mark.parametrize(("steps", "bounded"), [(14, True), (15, False), (16, False)])
def test_lower_orders_only_below_a_number_of_steps(steps, bounded):
    recipe = Recipe(DpmSolver3M(), Uniform(), OFF, steps, lower_order_final=True, lower_order_below=15)
    assert (recipe.plan(FLOW).max_orders is not None) == bounded


@pytest.mark.slow
@pytest.mark.spread(1)
@pytest.mark.parametrize("steps", some([7, 10, 12], [7]))
@pytest.mark.parametrize("t_end", [None, 1 / 1000])
def test_steps_of_one_length_are_the_models(steps, t_end):
    """``t - T // N``, whatever the next time; below the first step it is clean data, or the given end."""
    recipe = Recipe(Ddim(), Trailing(), OFF, steps, t_end=t_end, fixed_stride=1000)
    times = recipe.plan(PROCESS).times
    start = Trailing().indices(steps)
    end = start - 1000 // steps
    np.testing.assert_allclose(times.start, (start + 1) / 1000, rtol=1e-12)
    np.testing.assert_allclose(times.end, np.where(end < 0, t_end or 0.0, (end + 1) / 1000), atol=1e-12)
    assert not np.any(times.start[1:] > times.end[:-1])  # nothing counts as a return to noise
    counting = Counting(mixture().denoiser(PROCESS))
    with jax.disable_jit():
        run(recipe, denoise=counting)
    assert counting.calls == recipe.calls(PROCESS) == steps


@pytest.mark.parametrize("t_end", [None, 1e-3])
@pytest.mark.parametrize(("lower", "euler"), [(False, False), (True, False), (False, True)])
def test_a_path_that_never_returns_ends_as_its_times_do(t_end, lower, euler):
    times, path = Uniform()(FLOW, 9), Restart(Uniform(), repeats=0)(FLOW, 9)
    found, expected = (with_end(steps, t_end).bounded(lower, euler) for steps in (path, times))
    np.testing.assert_array_equal(found.times, as_path(expected.times))
    assert found.jumps == expected.jumps
    np.testing.assert_array_equal(found.max_orders, expected.max_orders)


def test_the_last_step_leads_from_where_a_path_ends_to_the_end():
    path = RePaint(Uniform(), 2, 3)(FLOW, 9)
    plan = with_end(path, 1e-3)
    assert not plan.jumps
    np.testing.assert_array_equal(plan.times.start, jnp.append(path.start, path.end[-1]))
    np.testing.assert_array_equal(plan.times.end, jnp.append(path.end, 1e-3))


def test_unit_noise_is_not_scaled_by_sigma():
    t = Linspace()(PROCESS, 3)[0] * 0 + 0.3
    for initial, std in (("unit", 1.0), ("process", PROCESS.signal(t).sigma)):
        recipe = Recipe(Ddim(), Uniform(0.3), OFF, 2, initial=initial)
        whole = run(recipe, noise=NOISE)
        np.testing.assert_allclose(
            whole, run(dataclasses.replace(recipe, below=1.0), x=std * NOISE), rtol=1e-6
        )
    flow = Recipe(Ddim(), Uniform(0.3), OFF, 2, initial="unit")
    np.testing.assert_allclose(flow.initial_std(FLOW, jnp.asarray(0.3)), np.sqrt(0.7**2 + 0.3**2), rtol=1e-6)


@pytest.mark.slow
def test_known_data_have_the_noise_of_the_process():
    """Only what is generated begins with unit noise."""
    known = KnownData(jnp.ones((3, *SHAPE)), jnp.asarray([[[[True, False]]]] * 3))
    seen = []

    def denoise(x, t):
        seen.append(np.asarray(x))
        return mixture().denoiser(PROCESS)(x, t)

    recipe = Recipe(Ddim(), Uniform(0.3), OFF, 2, inpainting=Replacement(), initial="unit")
    with jax.disable_jit():
        run(recipe, denoise=denoise, noise=NOISE, known=known)
    alpha, sigma = PROCESS.signal(jnp.asarray(0.3))
    np.testing.assert_allclose(seen[0][..., 0], NOISE[..., 0], rtol=1e-6)
    np.testing.assert_allclose(seen[0][..., 1], alpha + sigma * NOISE[..., 1], rtol=1e-6)


def test_contradictions_are_refused():
    recipe = Recipe(Ddim(), Uniform(), OFF, 4)
    with pytest.raises(UserError, match=r"x='given': expected either noise or x, got both"):
        run(recipe, FLOW, noise=NOISE, x=NOISE)
    with pytest.raises(UserError, match=r"below=0.5: expected noisy data x to start from, got none"):
        run(dataclasses.replace(recipe, below=0.5), FLOW, noise=NOISE)
    with pytest.raises(UserError, match=r"process=.*expected the recipe's own"):
        run(dataclasses.replace(recipe, process=PROCESS), FLOW, noise=NOISE)
    with pytest.raises(UserError, match=r"initial='sigma': expected one of"):
        dataclasses.replace(recipe, initial="sigma")
    again = dataclasses.replace(recipe, grid=RePaint(Uniform(), 1, 2), steps=6)
    for field, value in itertools.product(("until", "below", "fixed_stride"), (0.5, 1000)):
        if (field == "fixed_stride") == (value == 1000):
            with pytest.raises(UserError, match=rf"{field}={value}: expected a grid that only decreases"):
                dataclasses.replace(again, **{field: value}).plan(FLOW)


def test_configs_build_the_same_recipe():
    recipe = dataclasses.replace(
        PARTS["one length"], process=PROCESS, noise_label=RoundedIndex(), initial="unit", until=0.5
    )
    assert build(from_json(to_json(describe(recipe)))) == recipe
