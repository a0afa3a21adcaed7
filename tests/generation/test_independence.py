"""An image depends on the model, the seed and its own number, not on the number of images."""

import dataclasses

import numpy as np
import pytest

from jaxdiff.sampling.samplers.adaptive import Rk45
from jaxdiff.sampling.samplers.ancestral import Ancestral
from jaxdiff.sampling.samplers.dpm_solver_single import DpmSolverSde
from tests.generation.test_generator import a_generator
from tests.selection import some


@pytest.mark.parametrize("sampler", some([Ancestral(), DpmSolverSde(), Rk45()], [Ancestral()]), ids=str)
def test_an_image_does_not_depend_on_how_many_are_sampled(sampler):
    generator = a_generator(slope=0.5)
    generator = dataclasses.replace(generator, recipe=dataclasses.replace(generator.recipe, sampler=sampler))
    first, other = (generator(8, label=None, seed=seed) for seed in (3, 4))
    for n in (1, 2, 3, 5):
        np.testing.assert_array_equal(generator(n, label=None, seed=3), first[:n])
    assert np.any(first != other)
    assert len(np.unique(first, axis=0)) == 8
