"""The parts of a task agree on the standard deviation of the data, and the data have about that."""

import dataclasses
import logging
import types

import numpy as np
import pytest

from jaxdiff.config import build, load
from jaxdiff.data.arrays import Arrays
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.errors import UserError
from jaxdiff.process.prediction import V
from jaxdiff.tasks import consistency
from jaxdiff.tasks.objectives import UncertaintyWeighted
from tests.commands import DIGITS


@pytest.fixture(scope="module")
def task():
    return build(load(DIGITS)).task


def changed(task, sigma_data):
    parameterization = dataclasses.replace(task.denoiser.parameterization, sigma_data=sigma_data)
    return dataclasses.replace(task, denoiser=task.denoiser.clone(parameterization=parameterization))


def test_parts_that_differ_are_both_named(task):
    consistency.check(task)
    example = {"image": np.zeros((8, 8, 1), np.uint8), "label": np.int32(0)}
    with pytest.raises(UserError) as error:
        changed(task, 0.3).check(example, 10)
    for path in ("denoiser.parameterization.sigma_data", "objective.weighting.sigma_data"):
        assert f"config.task.{path}" in str(error.value)


def test_a_part_inside_another_objective_is_found(task):
    names = ("time_sampler", "codec", "data_field")
    others = {name: getattr(task, name) for name in names}
    inner = types.SimpleNamespace(
        denoiser=changed(task, 0.3).denoiser, objective=UncertaintyWeighted(task.objective), **others
    )
    with pytest.raises(UserError, match=r"config\.task\.objective\.error\.weighting\.sigma_data"):
        consistency.check(inner)


def images(deviation):
    """Two levels, `deviation` above and below the middle of [-1, 1]."""
    levels = np.round(127.5 + 127.5 * deviation * np.array([-1, 1])).astype(np.uint8)
    return Pipeline(Arrays(image=np.tile(levels[:, None, None, None], (20, 8, 8, 1))))


@pytest.mark.parametrize(("deviation", "warns"), [(0.75, False), (0.5, False), (0.2, True), (0.0, True)])
def test_data_of_another_scale_are_reported(task, deviation, warns, caplog):
    with caplog.at_level(logging.WARNING):
        consistency.warn_of_scale(task, images(deviation).stored)
    (record,) = caplog.records or (None,)
    assert (record is not None) == warns
    if record is not None:
        assert "expected about the standard deviation of the data, got data with" in record.getMessage()
        assert abs(record.args[2] - deviation) < 0.01


@pytest.mark.parametrize("count", [2, 3])
def test_few_data_are_all_measured(task, count, caplog):
    """Half of the deviation is between the first image and the others."""
    dark, bright = np.full((1, 8, 8, 1), 113, np.uint8), np.full((count - 1, 8, 8, 1), 141, np.uint8)
    stored = Pipeline(Arrays(image=np.concatenate([dark, bright]))).stored
    with caplog.at_level(logging.WARNING):
        consistency.warn_of_scale(task, stored)
    (record,) = caplog.records
    share = 1 / count
    np.testing.assert_allclose(record.args[2], 28 / 127.5 * np.sqrt(share * (1 - share)), rtol=1e-6)


def test_a_task_that_assumes_nothing_measures_nothing(task):
    denoiser = task.denoiser.clone(parameterization=V())
    plain = dataclasses.replace(task, denoiser=denoiser, objective=type(task.objective)())

    def fail():
        raise AssertionError

    consistency.warn_of_scale(plain, fail)
