"""Distillation of a trained diffusion model, the teacher, into one that needs fewer calls for a sample.

The pair (x_0, noise) that the teacher leads to takes the place of the example's own. So the loss is a `WeightedError`
of that pair, with its weighting and distance, and the student remains a diffusion model.
"""

import dataclasses
from collections.abc import Mapping

from jaxdiff.conditioning.guidance_scale import GuidanceScale
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import between, expect
from jaxdiff.process.gaussian import diffuse, expand
from jaxdiff.process.time_sampling import TimeSampler
from jaxdiff.tasks.consistency_models import LARGEST, TEACHER, check_guided
from jaxdiff.tasks.objectives import LossInputs, Objective, UncertaintyWeighted, WeightedError
from jaxdiff.typing import Array, Float, Metrics, Weights


@dataclasses.dataclass(frozen=True)
class GuidanceDistillation(Objective):
    """Guidance distillation (Meng et al. 2023, "On distillation of guided diffusion models", equation 4).

    The student's one call learns the teacher's prediction with classifier-free guidance, which needs two. It is sampled
    with guidance 1, by any sampler. An example whose conditions are dropped keeps the unconditional prediction.

    Attributes:
      teacher: the weights of a trained denoiser of the same architecture, without the condition `scales`.
      guidance: the guidance scale that is learned.
      scales: the name of a condition `GuidanceScale`, whose value is the scale of each example; None for `guidance`.
      error: the objective on the teacher's pair.
    """

    teacher: Weights
    guidance: float = 1.0
    scales: str | None = None
    error: Objective = WeightedError()

    def __post_init__(self):
        between(self, "guidance", 0.0, LARGEST, open_low=True)
        one = self.scales is None or self.guidance == 1
        expect(one, "guidance", self.guidance, "1 with scales, which replace it", "leave one of them out")
        _check_error(self.error)

    @property
    def frozen(self) -> Mapping[str, Weights]:
        return {TEACHER: self.teacher}

    @property
    def added(self) -> frozenset[str]:
        return frozenset() if self.scales is None else frozenset({self.scales})

    def __call__(self, inputs: LossInputs) -> tuple[Float[Array, "batch"], Metrics]:
        model = inputs.model
        assert model is not None  # the task sets it
        guidance = self.guidance if self.scales is None else model.fields[self.scales]
        pair = model.guided(TEACHER, inputs.x_t, inputs.t, guidance)
        return self.error(dataclasses.replace(inputs, x_0=pair.x_0, noise=pair.noise))

    def check(self, denoiser: Denoiser, time_sampler: TimeSampler) -> None:
        if self.scales is not None:
            found = isinstance(denoiser.conditioner.conditions.get(self.scales), GuidanceScale)
            expected = "the name of a condition GuidanceScale"
            expect(found, "objective.scales", self.scales, expected, "add one to the conditioner", "none")
        if self.scales is not None or self.guidance != 1:
            check_guided(denoiser, "objective.guidance", self.scales or self.guidance, self.added)
        self.error.check(denoiser, time_sampler)


@dataclasses.dataclass(frozen=True)
class ProgressiveDistillation(Objective):
    """Progressive distillation (Salimans & Ho 2022, algorithm 2): one step of the student for two of the teacher.

    The student has as many steps as the task's `UniformSteps`, and the teacher twice as many. The steps are DDIM's, so
    sample the student with `Ddim` on the grid `Uniform` and that number of steps. Each halving is a run of its own,
    whose teacher is the student before; `init_from` starts it there.

    Attributes:
      teacher: the weights of a trained denoiser of the same architecture.
      guidance: the scale of classifier-free guidance of the teacher; 1 after the first halving.
      error: the objective on the pair that leads where the teacher's two steps lead.
    """

    teacher: Weights
    guidance: float = 1.0
    error: Objective = WeightedError()

    def __post_init__(self):
        between(self, "guidance", 0.0, LARGEST, open_low=True)
        _check_error(self.error)

    @property
    def frozen(self) -> Mapping[str, Weights]:
        return {TEACHER: self.teacher}

    def __call__(self, inputs: LossInputs) -> tuple[Float[Array, "batch"], Metrics]:
        model, process, x_t, t = inputs.model, inputs.process, inputs.x_t, inputs.t
        steps = inputs.time_sampler.steps
        assert model is not None  # the task sets it
        assert steps is not None  # guaranteed by `check`
        x = x_t
        for start, end in ((t, t - 0.5 / steps), (t - 0.5 / steps, t - 1 / steps)):
            pair = model.guided(TEACHER, x, start, self.guidance)
            x = diffuse(process, pair.x_0, pair.noise, end)
        # The only pair with this x_t whose step of DDIM leads to x.
        (alpha, sigma), (alpha_end, sigma_end) = process.signal(t), process.signal(t - 1 / steps)
        alpha, sigma, alpha_end, sigma_end = (
            expand(value, x) for value in (alpha, sigma, alpha_end, sigma_end)
        )
        determinant = alpha_end * sigma - alpha * sigma_end
        x_0 = (sigma * x - sigma_end * x_t) / determinant
        noise = (alpha_end * x_t - alpha * x) / determinant
        return self.error(dataclasses.replace(inputs, x_0=x_0, noise=noise))

    def check(self, denoiser: Denoiser, time_sampler: TimeSampler) -> None:
        expect(time_sampler.steps is not None, "time_sampler", time_sampler, "the steps of the student",
               "use jaxdiff.process.time_sampling:UniformSteps(steps=N)")  # fmt: skip
        if self.guidance != 1:
            check_guided(denoiser, "objective.guidance", self.guidance)
        self.error.check(denoiser, time_sampler)


def _check_error(error: Objective) -> None:
    """Raise `UserError` unless an objective is a regression on a pair of data and noise."""
    inner = error.error if isinstance(error, UncertaintyWeighted) else error
    fix = "use WeightedError, or UncertaintyWeighted of it"
    expect(
        isinstance(inner, WeightedError), "error", type(error).__name__, "an error of the predicted pair", fix
    )
