"""Runs that learn few-step sampling from another run: the teacher is recorded, checked, and not needed for samples."""

import json
import shutil

import numpy as np
import pytest

from jaxdiff.config import spec
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.runs.weights import RunWeights
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.samplers.consistency import Consistency
from jaxdiff.tasks.consistency_models import ConsistencyDistillation
from jaxdiff.train import train
from jaxdiff.training.transfer import InitFrom
from tests.runs import digits


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    train(digits.config(4), str(folder), source=digits.SOURCE)
    return folder


def distilled(teacher, *changes):
    config = digits.config(4, *changes)
    weights = spec(RunWeights, workdir=str(teacher))
    config.task.objective = spec(ConsistencyDistillation, teacher=weights, guidance=1.5)
    config.init_from = spec(InitFrom, workdir=str(teacher))
    config.sampling.sampler, config.sampling.guidance = spec(Consistency), spec(ClassifierFree)
    config.sampling.steps = 2
    return config


@pytest.mark.slow
def test_the_student_is_sampled_without_its_teacher(teacher, tmp_path):
    own, student = tmp_path / "teacher", tmp_path / "student"
    shutil.copytree(teacher, own)
    trained = train(distilled(own), str(student), source=digits.SOURCE)
    assert set(json.loads((student / "frozen.json").read_text())) == {"teacher"}
    before = digits.sample(trained)
    shutil.rmtree(own)
    np.testing.assert_array_equal(digits.sample(Generator.load(str(student))), before)


@pytest.mark.slow
def test_a_teacher_of_another_architecture_is_refused(teacher, tmp_path):
    wider = "task.denoiser.network.levels[0].width"
    config = distilled(teacher, (wider, "32"))
    config.init_from = None
    with pytest.raises(
        UserError, match=r"config.task.objective.teacher=.*Fix: use weights of a model with the same"
    ):
        train(config, str(tmp_path / "student"), source=digits.SOURCE)
