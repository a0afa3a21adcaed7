"""Learned grids of a trained model: the reported errors are those of its samples."""

import dataclasses

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.generation.grid_learning import GridLearner
from jaxdiff.sampling.grids.continuous import Karras, Uniform
from jaxdiff.sampling.grids.restart import RePaint
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.reuse import DeepCache
from jaxdiff.sampling.samplers.ancestral import Ancestral
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.flow_map import FlowMap
from tests.generation.test_generator import a_generator

SIZE, BATCHES = 8, 2
GRIDS = [Uniform(), Karras(sigma_min=0.02, sigma_max=20.0)]


def model(grid=GRIDS[0], scale=1.0):
    """Its prediction depends on the noisy image, so that few steps are inexact."""
    return a_generator(ClassifierFree(scale), grid, slope=0.4)


def conditions(index):
    return {"label": index % 5}


def learner(generator, **options):
    return GridLearner.of(generator, **{"batch_size": SIZE, "batches": BATCHES, "exact_steps": 50, **options})


def distance(generator, recipe, exact, numbers, seed=0):
    """Between samples of a generator by two recipes, as its codec returns them: in units of its data."""
    made = [
        dataclasses.replace(generator, recipe=each)(
            len(numbers), first=int(numbers[0]), seed=seed, rounded=False, **conditions(numbers)
        )
        for each in (recipe, exact)
    ]
    return float(np.sqrt(np.mean((made[0] - made[1]) ** 2)))


@pytest.mark.parametrize("grid", GRIDS, ids=["from pure noise", "from a level"])
def test_the_errors_are_those_of_samples_that_were_not_learned_from(grid):
    generator = model(grid, scale=2.0)
    found = learner(generator, iterations=60, seed=3)(4, conditions)
    few, exact = (dataclasses.replace(generator.recipe, steps=steps) for steps in (4, 50))
    numbers = np.arange(BATCHES * SIZE, 2 * BATCHES * SIZE)
    for recipe, error in ((found.recipe, found.error), (few, found.error_before)):
        np.testing.assert_allclose(distance(generator, recipe, exact, numbers, seed=3), error, rtol=1e-3)
    assert found.error < 0.7 * found.error_before


def test_the_first_time_and_everything_but_the_grid_stay():
    generator = model()
    found = learner(generator, iterations=3)(4, conditions)
    assert found.recipe.grid.times[0] == 1.0
    assert len(found.levels) == 4
    assert np.isinf(found.levels[0])
    unchanged = dataclasses.replace(found.recipe, grid=generator.recipe.grid)
    assert unchanged == dataclasses.replace(generator.recipe, steps=4)


def test_iterations_are_reported_and_learn_from_every_batch():
    seen, asked = [], []

    def of(index):
        asked.append(index.tolist())
        return conditions(index)

    found = learner(model(), iterations=4, rate=0.0)(3, of, lambda *words: seen.append(words))
    assert [number for number, _ in seen] == [0, 1, 2, 3]
    assert asked == [list(range(start, start + SIZE)) for start in range(0, 4 * SIZE, SIZE)]
    assert seen[0][1] == seen[2][1] != seen[1][1] == seen[3][1]
    np.testing.assert_allclose(found.error, found.error_before, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "steps", "message"),
    [
        ({"sampler": Ancestral()}, 4, "sampling.sampler=.*expected a sampler that adds no noise"),
        ({"sampler": FlowMap()}, 4, "sampling.sampler=.*expected a sampler of one time"),
        ({"reuse": DeepCache()}, 4, "sampling.reuse=.*expected None"),
        ({"grid": RePaint(Uniform())}, 4, "sampling.grid=.*expected a grid that only falls"),
        ({"sampler": Ddim()}, 1, "steps=1: expected at least 2"),
        ({"sampler": Ddim()}, 50, "steps=50: expected fewer than the 50 of exact samples"),
    ],
    ids=["noise", "flow map", "reuse", "returns", "one step", "as many steps"],
)
def test_what_cannot_follow_exact_samples_is_an_error(changes, steps, message):
    generator = model()
    changed = dataclasses.replace(generator, recipe=dataclasses.replace(generator.recipe, **changes))
    with pytest.raises(UserError, match=message):
        learner(changed)(steps, conditions)
