"""Mid-training on Gaussian data: the targets are samples of the teacher, and the optimum has a closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import VarianceExploding
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.grids.restart import Restart
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver2M
from jaxdiff.sampling.samplers.flow_map import FlowMap
from jaxdiff.sampling.samplers.heun import Heun
from jaxdiff.tasks.distances import Squared
from jaxdiff.tasks.mid_training import MidTraining
from tests.tasks.test_consistency_models import (
    EXACT,
    Nowhere,
    consistency_function,
    each_process,
    inputs,
    posterior_mean,
)

GRID = Karras(0.02, 20.0)
SAMPLERS = [DpmSolver2M(), Heun(), Ddim()]


def drawn(seen, objective):
    return dataclasses.replace(seen, drawn=objective.draw(jax.random.key(1), len(seen.t)))


def denoiser_of(params, process):
    def denoise(x, t, conditions, drop):
        return posterior_mean(params, x, jnp.full(len(x), t), drop, False, process)

    return denoise


@pytest.mark.spread(3)
@each_process
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_end_is_the_teachers_sample_from_the_noise_of_the_example(process, sampler, guidance):
    params = {"class": 0.4, "all": 0.9}
    objective = MidTraining(Nowhere(), guidance, sampler, GRID, steps=7)
    seen = inputs(process, lambda x, t: x, teacher=params)
    recipe = Recipe(sampler=sampler, grid=GRID, guidance=ClassifierFree(guidance), steps=7)
    keys = jax.random.split(jax.random.key(0), len(seen.t))
    conditions = {"label": jnp.zeros(len(seen.t), int)}
    expected = recipe(
        denoiser_of(params, process), process, conditions, seen.x_0.shape[1:], keys, noise=seen.noise
    )
    path = objective.trajectory(seen)
    np.testing.assert_allclose(path.end, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(path.points[0], seen.noise * process.signal(path.times[0]).sigma, rtol=1e-6)


@pytest.mark.spread(2)
@each_process
@pytest.mark.parametrize("sampler", SAMPLERS[1:], ids=str)
def test_every_point_leads_to_the_same_end(process, sampler):
    """A sampler without history that starts at a later point continues the same trajectory."""
    objective = MidTraining(Nowhere(), 1.0, sampler, GRID, steps=6)
    path = objective.trajectory(inputs(process, lambda x, t: x, teacher=EXACT))
    assert path.points.shape == (6, *path.end.shape)
    denoise = denoiser_of(EXACT, process)
    for index in range(1, 6):
        from_there = lambda process, steps, index=index: path.times[index:]  # noqa: E731
        recipe = Recipe(sampler=sampler, grid=from_there, guidance=ClassifierFree(1.0), steps=6 - index)
        keys = jax.random.split(jax.random.key(0), len(path.end))
        conditions = {"label": jnp.zeros(len(path.end), int)}
        found = recipe(denoise, process, conditions, path.end.shape[1:], keys, x=path.points[index])
        np.testing.assert_allclose(found, path.end, rtol=1e-5, atol=1e-6)


@each_process
def test_the_consistency_function_has_the_error_of_the_teachers_sampler(process):
    """Second order: four times smaller for twice the steps."""

    def difference(steps):
        objective = MidTraining(Nowhere(), 1.0, Heun(), GRID, steps, pairs=64, distance=Squared())
        student = lambda x, t: consistency_function(process, x, t)  # noqa: E731
        return objective(drawn(inputs(process, student, teacher=EXACT), objective))[1]["difference"]

    coarse, fine = np.sqrt(difference(20)), np.sqrt(difference(40))
    assert 3 < coarse / fine < 6
    assert fine < 1e-2


def test_the_loss_is_the_mean_over_the_drawn_points():
    process = VarianceExploding()
    objective = MidTraining(Nowhere(), 1.0, Ddim(), GRID, steps=5, pairs=3, distance=Squared())
    seen = drawn(inputs(process, lambda x, t: 0.3 * x, teacher=EXACT), objective)
    points = np.asarray(seen.drawn["points"])
    assert points.shape == (4, 3)
    assert {*points.ravel()} <= {*range(5)}
    path = objective.trajectory(seen)
    errors = [
        [np.mean(np.square(0.3 * path.points[index, row] - path.end[row])) for index in points[row]]
        for row in range(4)
    ]
    np.testing.assert_allclose(objective(seen)[0], np.mean(errors, 1), rtol=1e-5)


def test_grids_that_return_to_noise_are_refused():
    objective = MidTraining(Nowhere(), grid=Restart(GRID, s_min=0.1, s_max=1.0), steps=6)
    with pytest.raises(UserError, match="return"):
        objective.trajectory(inputs(VarianceExploding(), lambda x, t: x, teacher=EXACT))


def test_points_of_all_times_are_drawn():
    objective = MidTraining(Nowhere(), steps=5, pairs=50)
    assert {*np.asarray(objective.draw(jax.random.key(0), 4)["points"]).ravel()} == {*range(5)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"pairs": 0}, "pairs=0"),
        ({"guidance": float("nan")}, "guidance=nan"),
        ({"sampler": Ddim(eta=1.0)}, "sampler='Ddim': expected a sampler of trajectories, without noise"),
        ({"sampler": DpmSolver2M(eta=1.0)}, "sampler='DpmSolver2M'"),
        ({"sampler": FlowMap()}, "sampler='FlowMap'"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        MidTraining(Nowhere(), **options)
