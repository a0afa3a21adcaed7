"""Distillation on Gaussian data, where guided predictions and steps of DDIM are linear and known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.guidance_scale import GuidanceScale
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import RectifiedFlow, VariancePreserving, expand
from jaxdiff.process.prediction import V
from jaxdiff.process.schedule import Cosine
from jaxdiff.process.time_sampling import Uniform, UniformSteps
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.loop import integrate
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.tasks.consistency_models import TEACHER, ConsistencyDistillation
from jaxdiff.tasks.distillation import GuidanceDistillation, ProgressiveDistillation
from jaxdiff.tasks.mean_flow import MeanFlow
from tests.tasks.test_consistency_models import Nowhere, inputs, pair, posterior_mean

PROCESSES = [VariancePreserving(Cosine()), RectifiedFlow()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=str)
WIDTHS = {"class": 0.4, "all": 0.9}
STEPS = 4
KEY = jax.random.split(jax.random.key(0), 1)


def guided(process, scale):
    """The teacher with classifier-free guidance, as our sampler has it."""

    def denoise(x, t, conditions, drop):
        return posterior_mean(WIDTHS, x, jnp.full(len(x), t), drop, False, process)

    return ClassifierFree(scale)(denoise, process, {"label": jnp.zeros(1, int)}, KEY)


def loss_of(objective, process, t, target, **changes):
    """The losses of a student whose prediction is ``target(x_t, t)``, one example at a time."""

    def student(x, time):
        return jnp.concatenate([target(row[None], each) for row, each in zip(x, time, strict=True)])

    seen = inputs(process, student, t=t, teacher=WIDTHS)
    return objective(dataclasses.replace(seen, **changes))[0]


@each_process
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_student_with_the_guided_prediction_has_no_loss_and_others_have_one(process, scale):
    objective, t = GuidanceDistillation(Nowhere(), scale), (0.3, 0.6, 0.9)

    def target(x, t):
        return guided(process, scale)(x, t).x_0

    np.testing.assert_allclose(loss_of(objective, process, t, target), 0, atol=1e-20)
    assert np.all(loss_of(objective, process, t, lambda x, t: 0.9 * target(x, t)) > 1e-6)


def test_each_example_has_the_scale_of_its_condition():
    process, t, scales = RectifiedFlow(), (0.3, 0.6, 0.9), (1.0, 2.0, 4.0)
    by_time = dict(zip(t, scales, strict=True))
    seen = inputs(process, lambda x, t: x, t=t, teacher=WIDTHS)
    model = dataclasses.replace(
        seen.model,
        fields={"scale": jnp.asarray(scales)},
        drop={**seen.model.drop, "scale": jnp.zeros(3, bool)},
        added=frozenset({"scale"}),
    )
    shown = []

    def predict(params, x, time, until, drop, train):
        shown.append(set(drop))
        return seen.model.predict(params, x, time, until, drop, train)

    model = dataclasses.replace(model, predict=predict)

    def target(x, t):
        return guided(process, by_time[round(float(t), 6)])(x, t).x_0

    losses = loss_of(GuidanceDistillation(Nowhere(), scales="scale"), process, t, target, model=model)
    np.testing.assert_allclose(losses, 0, atol=1e-20)
    assert shown == [{"label"}]  # the teacher does not have the condition of the scale


@each_process
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_one_step_of_the_optimal_student_is_two_steps_of_the_guided_teacher(process, scale):
    """The data of a Gaussian: both steps multiply by a number, and so does the student's."""
    objective, t = ProgressiveDistillation(Nowhere(), scale), (0.25, 0.5, 0.75, 1.0)

    def target(x, t):
        end = t - 1 / STEPS
        times = jnp.array([t, t - 0.5 / STEPS, end])
        reached = integrate(Ddim(), guided(process, scale), process, times, x, KEY) / x
        (alpha, sigma), (alpha_end, sigma_end) = process.signal(t), process.signal(end)
        # alpha_end k + sigma_end (1 - alpha k) / sigma is what one step multiplies by.
        return x * (reached - sigma_end / sigma) / (alpha_end - sigma_end * alpha / sigma)

    steps = {"time_sampler": UniformSteps(STEPS)}
    np.testing.assert_allclose(loss_of(objective, process, t, target, **steps), 0, atol=1e-18)
    assert np.all(loss_of(objective, process, t, lambda x, t: 0.9 * target(x, t), **steps) > 1e-6)


def test_halving_is_exact_for_a_single_image():
    """Its denoiser is a constant, and DDIM is exact with any number of steps: the target is the image."""
    process, image = RectifiedFlow(), 0.3

    def predict(params, x, time, until, drop, train):
        return pair(process, x, time, jnp.full_like(x, image))

    seen = inputs(process, lambda x, t: jnp.full_like(x, image), t=(0.25, 1.0), teacher=WIDTHS)
    seen = dataclasses.replace(
        seen, model=dataclasses.replace(seen.model, predict=predict), time_sampler=UniformSteps(STEPS)
    )
    losses, _ = ProgressiveDistillation(Nowhere())(seen)
    np.testing.assert_allclose(losses, 0, atol=1e-20)


def test_no_gradient_reaches_what_the_student_learns_from():
    """The teacher's parameters are constants: the loss of a student is as steep as that of any regression."""
    process, t = RectifiedFlow(), (0.3, 0.6)
    seen = inputs(process, lambda x, t: x, t=t, teacher=WIDTHS)

    def total(factor):
        return jnp.sum(
            GuidanceDistillation(Nowhere(), 2.0)(dataclasses.replace(seen, output=factor * seen.output))[0]
        )

    found = seen.model.guided(TEACHER, seen.x_t, seen.t, 2.0)
    a, b = (expand(value, seen.x_t) for value in seen.parameterization.row(process, seen.t))
    aim = a * found.x_0 + b * found.noise
    expected = jnp.sum(jnp.mean(2 * seen.output * (seen.output - aim), axis=(1, 2, 3)))
    np.testing.assert_allclose(jax.grad(total)(1.0), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GuidanceDistillation(Nowhere(), 0.0), "guidance=0.0"),
        (lambda: GuidanceDistillation(Nowhere(), float("nan")), "guidance=nan"),
        (lambda: GuidanceDistillation(Nowhere(), 2.0, "scale"), "guidance=2.0: expected 1 with scales"),
        (lambda: ProgressiveDistillation(Nowhere(), float("inf")), "guidance=inf"),
        (lambda: checked(GuidanceDistillation(Nowhere(), scales="label")), "objective.scales='label': expected the"),
        (lambda: checked(GuidanceDistillation(Nowhere(), scales="other")), "objective.scales='other': expected the"),
        (lambda: GuidanceDistillation(Nowhere(), 2.0, error=MeanFlow()), "error='MeanFlow': expected an error of the"),
        (lambda: ProgressiveDistillation(Nowhere(), error=GuidanceDistillation(Nowhere())), "error='GuidanceDist"),
        (lambda: checked(GuidanceDistillation(Nowhere(), 2.0), drop_rate=0.0), "expected a null of label"),
        (lambda: checked(ConsistencyDistillation(Nowhere(), 2.0), null="none"), "guidance=2.0: expected a model with"),
        (lambda: checked(ProgressiveDistillation(Nowhere())), "time_sampler=Uniform.*Fix: use .*UniformSteps"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_condition_of_the_scale_is_accepted():
    checked(GuidanceDistillation(Nowhere(), scales="scale"))


def checked(objective, drop_rate=0.1, null="learned"):
    drop_rate = 0.0 if null == "none" else drop_rate
    conditions = {"label": ClassLabel(3, 8, drop_rate, null), "scale": GuidanceScale(width=8)}
    network = UNet((Level(32),), out_channels=1)
    objective.check(
        Denoiser(network, Conditioner(NoiseLevel(8), conditions), RectifiedFlow(), V()), Uniform()
    )
