"""Runs that learn few-step sampling from another run: the teacher is recorded, checked, and not needed for samples."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from jaxdiff.conditioning.guidance_scale import GuidanceScale
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.config import spec
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.process.prediction import Velocity
from jaxdiff.process.time_sampling import Uniform as UniformTimes
from jaxdiff.process.time_sampling import UniformSteps
from jaxdiff.runs.weights import RunWeights
from jaxdiff.sampling.grids.continuous import Uniform
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.consistency import Consistency
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.flow_map import FlowMap
from jaxdiff.tasks.consistency_models import ConsistencyDistillation
from jaxdiff.tasks.distillation import GuidanceDistillation, ProgressiveDistillation
from jaxdiff.tasks.mean_flow import MeanFlow
from jaxdiff.tasks.mid_training import MidTraining
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
def test_a_student_learns_every_guidance_scale_and_has_a_condition_for_it(teacher, tmp_path):
    config = digits.config(12, ("ema.decay", "0.5"), ("optimizer.learning_rate", "0.01"))
    weights = spec(RunWeights, workdir=str(teacher))
    config.task.objective = spec(GuidanceDistillation, teacher=weights, scales="scale")
    width = config.task.denoiser.conditioner.noise.width
    conditions = config.task.denoiser.conditioner.conditions
    with conditions.unlocked():
        conditions["scale"] = spec(GuidanceScale, width=width, low=1.0, high=4.0, default=1.5)
    config.init_from = spec(InitFrom, workdir=str(teacher))
    config.sampling.guidance = spec(ClassifierFree)
    student = train(config, str(tmp_path / "student"), source=digits.SOURCE)
    weak, own, strong = (digits.sample(student, **given) for given in ({"scale": 1.0}, {}, {"scale": 4.0}))
    assert (weak != own).any()
    assert (own != strong).any()
    with pytest.raises(UserError, match=r"scale=.*expected scales in \[1, 4\]"):
        digits.sample(student, scale=9.0)


@pytest.mark.slow
def test_a_student_of_half_the_steps_is_the_teacher_of_the_next_halving(teacher, tmp_path):
    for steps, before, after in ((4, teacher, tmp_path / "four"), (2, tmp_path / "four", tmp_path / "two")):
        config = digits.config(4)
        weights = spec(RunWeights, workdir=str(before))
        config.task.objective = spec(ProgressiveDistillation, teacher=weights)
        config.task.time_sampler = spec(UniformSteps, steps=steps)
        config.init_from = spec(InitFrom, workdir=str(before))
        config.sampling = spec(
            Recipe, sampler=spec(Ddim), grid=spec(Uniform), guidance=spec(ClassifierFree), steps=steps
        )
        student = train(config, str(after), source=digits.SOURCE)
        assert digits.sample(student).std() > 0


@pytest.mark.slow
def test_a_flow_map_is_trained_from_noise_and_sampled_in_any_number_of_calls(tmp_path):
    config = digits.config(4)
    denoiser = config.task.denoiser
    denoiser.process, denoiser.parameterization = spec(RectifiedFlow), spec(Velocity)
    denoiser.conditioner.span = spec(NoiseLevel, width=denoiser.conditioner.noise.width)
    config.task.objective, config.task.time_sampler = spec(MeanFlow, guidance=1.5), spec(UniformTimes)
    config.sampling = spec(
        Recipe, sampler=spec(FlowMap), grid=spec(Uniform), guidance=spec(ClassifierFree), steps=1
    )
    train(config, str(tmp_path), source=digits.SOURCE)
    one = Generator.load(str(tmp_path))
    three = dataclasses.replace(one, recipe=dataclasses.replace(one.recipe, steps=3))
    assert (one.calls, three.calls) == (1, 3)
    assert (digits.sample(one) != digits.sample(three)).any()


@pytest.mark.slow
def test_a_student_of_whole_trajectories_needs_few_calls(teacher, tmp_path):
    config = distilled(teacher)
    weights = spec(RunWeights, workdir=str(teacher))
    config.task.objective = spec(MidTraining, teacher=weights, guidance=1.5, steps=4, pairs=2)
    student = train(config, str(tmp_path / "student"), source=digits.SOURCE)
    assert student.calls == 2
    assert digits.sample(student).std() > 0


@pytest.mark.slow
@pytest.mark.parametrize("scales", [None, "scale"])
def test_a_trained_model_becomes_a_flow_map(teacher, tmp_path, scales):
    """The teacher has neither the span nor the condition of the scale."""
    config = digits.config(4)
    weights, conditioner = spec(RunWeights, workdir=str(teacher)), config.task.denoiser.conditioner
    conditioner.span = spec(NoiseLevel, width=conditioner.noise.width)
    if scales is not None:
        with conditioner.conditions.unlocked():
            conditioner.conditions[scales] = spec(GuidanceScale, width=conditioner.noise.width)
    guidance = 1.5 if scales is None else 1.0
    config.task.objective = spec(MeanFlow, teacher=weights, guidance=guidance, scales=scales, to_data=0.5)
    config.init_from = spec(InitFrom, workdir=str(teacher), fresh=("conditioner/span/*",))
    config.sampling.sampler, config.sampling.guidance = spec(FlowMap), spec(ClassifierFree)
    config.sampling.steps = 1
    student = train(config, str(tmp_path / "student"), source=digits.SOURCE)
    assert student.calls == 1
    assert digits.sample(student).std() > 0


def test_a_teacher_that_is_not_there_is_an_error_before_anything_is_written(tmp_path):
    config, student = distilled(tmp_path / "nowhere"), tmp_path / "student"
    message = (
        r"frozen\.teacher\.workdir=.*nowhere.*: expected the folder of a run.*got none\. Fix: train that run"
    )
    with pytest.raises(UserError, match=message):
        train(config, str(student), source=digits.SOURCE)
    assert not student.exists()


@pytest.mark.slow
def test_a_teacher_of_another_architecture_is_refused(teacher, tmp_path):
    wider = "task.denoiser.network.levels[0].width"
    config = distilled(teacher, (wider, "32"))
    config.init_from = None
    with pytest.raises(
        UserError, match=r"config.task.objective.teacher=.*Fix: use weights of a model with the same"
    ):
        train(config, str(tmp_path / "student"), source=digits.SOURCE)
