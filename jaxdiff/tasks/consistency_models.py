"""Consistency models: objectives whose best prediction is the end of a sampling trajectory, so that few calls suffice.

A consistency function f(x_t, t) is the data that the probability-flow ODE reaches from x_t. It is the same for all
points of a trajectory, so it is learned by comparing two neighbours, x_t and x_r with r below t, where f(x_r, r) is a
constant for the gradient. Here f is the `x_0` that a denoiser predicts. At the smallest noise level x_t is the data,
so every parameterization starts with the right boundary.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdiff.conditioning.nulls import is_untrained
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import expect, positive
from jaxdiff.process import prediction
from jaxdiff.process.gaussian import Process, diffuse, expand
from jaxdiff.process.time_sampling import TimeSampler
from jaxdiff.process.weighting import Weighting
from jaxdiff.tasks.distances import Distance, PseudoHuber
from jaxdiff.tasks.objectives import LossInputs, Objective
from jaxdiff.typing import Array, Data, Float, Metrics, Times, Weights

LARGEST = 1000.0
"""Beyond this, guidance leaves nothing of the teacher's prediction."""

TEACHER = "teacher"
"""The name of a teacher among the frozen networks of a task."""


def check_guided(denoiser: Denoiser, field: str, value: object, added: frozenset[str] = frozenset()) -> None:
    """Raise `UserError` about `field` unless classifier-free guidance of a denoiser has a null that is trained.

    Args:
      denoiser: the denoiser, with all conditions.
      field, value: what asks for guidance.
      added: conditions that the guided denoiser lacks.
    """
    conditions = denoiser.conditioner.conditions
    nulls = {
        name: conditions[name] for name in conditions if name not in added and conditions[name].null != "none"
    }
    fix = "give a condition drop_rate=0.1"
    expect(len(nulls) > 0, field, value, "a model with a condition that can be dropped", fix, "one without")
    for name, condition in nulls.items():
        untrained = condition.null == "learned" and is_untrained(condition.null, condition.drop_rate)
        expected = f"a null of {name} that training shows, since guidance drops all conditions"
        expect(not untrained, field, value, expected, f"give {name} drop_rate=0.1", "drop_rate=0")


@runtime_checkable
class Gap(Protocol):
    """The noise-to-signal ratio of the neighbour, sigma_r / alpha_r, from that of x_t."""

    def __call__(self, ratio: Times, step: Array) -> Times: ...


@dataclasses.dataclass(frozen=True)
class ShrinkingGap(Gap):
    """``r = t (1 - n(t) / q^stage)`` with ``n(t) = 1 + k sigmoid(-b t)`` (Geng et al. 2024, "ECT", section 3.3).

    t and r are ratios of noise to signal, as in EDM. Stages are counted from 1. In the first stages most r are zero:
    such an example is trained as a diffusion model is. Each stage divides the distance of the neighbours by q.

    Attributes:
      stage_steps: optimizer steps of a stage.
      q: how much smaller the distance is in each stage.
      k, b: the distance is up to ``1 + k / 2`` times larger at low noise, below about 1 / b.
      stages: the last stage; None for no limit.
    """

    stage_steps: int
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    stages: int | None = None

    def __post_init__(self):
        positive(self, "stage_steps", "b")
        expect(1 < self.q < math.inf, "q", self.q, "a finite number above 1", "use 2")
        expect(0 <= self.k < math.inf, "k", self.k, "a finite number of at least 0", "use 8")
        if self.stages is not None:
            positive(self, "stages")

    def __call__(self, ratio: Times, step: Array) -> Times:
        stage = 1.0 + jnp.asarray(step) // self.stage_steps
        stage = stage if self.stages is None else jnp.minimum(stage, self.stages)
        share = (1 + self.k * jax.nn.sigmoid(-self.b * ratio)) / self.q**stage
        return ratio * jnp.maximum(1 - share, 0.0)


@dataclasses.dataclass(frozen=True)
class KarrasGap(Gap):
    """The next level of Karras' grid of `steps` levels, counted from t (Karras et al. 2022, equation 5).

    The distance of neighbours in distillation (Song et al. 2023): a teacher's step of this length has a small error.

    Attributes:
      steps: levels between `sigma_max` and `sigma_min`.
      sigma_min, sigma_max: ends of the grid, as ratios of noise to signal.
      rho: exponent of the grid.
    """

    steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        positive(self, "steps", "sigma_min", "sigma_max", "rho")
        between, fix = f"a level above sigma_min={self.sigma_min}", "exchange them"
        expect(self.sigma_min < self.sigma_max, "sigma_max", self.sigma_max, between, fix)

    def __call__(self, ratio: Times, step: Array) -> Times:
        low, high = (end ** (1 / self.rho) for end in (self.sigma_min, self.sigma_max))
        root = ratio ** (1 / self.rho) - (high - low) / self.steps
        return jnp.minimum(jnp.maximum(root, low) ** self.rho, ratio)


@dataclasses.dataclass(frozen=True)
class ConsistencyTuning(Objective):
    """Consistency tuning of a trained diffusion model, "ECT" (Geng et al. 2024): without a teacher.

    ``distance(f(x_t, t) - f(x_r, r)) / (t - r)`` with t and r as ratios of noise to signal. Both points have the same
    data, noise and dropout. Start from a trained run (`init_from`), since the first stages continue its training.

    Attributes:
      gap: the neighbour's noise level.
      distance: the size of the difference.
      weighting: a weight of the distance by log-SNR in place of ``1 / (t - r)``; the authors take `weighting.Edm` on
        ImageNet. It is one of the error of x_0.
    """

    gap: Gap
    distance: Distance = PseudoHuber()
    weighting: Weighting | None = None

    def __post_init__(self):
        space = None if self.weighting is None else self.weighting.space
        fix = "use weighting.Edm"
        of_data = self.weighting is None or space == prediction.Data()
        expect(of_data, "weighting", self.weighting, "a weighting of the error of x_0", fix)

    def __call__(self, inputs: LossInputs) -> tuple[Float[Array, "batch"], Metrics]:
        ratio = _ratio(inputs.process, inputs.t)
        near = _near(self.gap, ratio, inputs)
        x_r = diffuse(inputs.process, inputs.x_0, inputs.noise, _time(inputs.process, near))
        x_r = jnp.where(expand(near, x_r) > 0, x_r, inputs.x_0)
        return _compared(inputs, self.distance, ratio, near, x_r, self.weighting)


@dataclasses.dataclass(frozen=True)
class ConsistencyDistillation(Objective):
    """Consistency distillation (Song et al. 2023; with guidance Luo et al. 2023, "Latent consistency models").

    x_r is one step of Heun's method from x_t along the teacher's trajectory. With a `guidance` other than 1 the
    trajectory is that of classifier-free guidance, so the student needs one call where the teacher needs two. An
    example whose conditions are dropped follows the unconditional trajectory.

    Attributes:
      teacher: the weights of a trained denoiser of the same architecture.
      guidance: the scale of classifier-free guidance of the teacher.
      gap: the neighbour's noise level.
      distance: the size of the difference.
    """

    teacher: Weights
    guidance: float = 1.0
    gap: Gap = KarrasGap()
    distance: Distance = PseudoHuber()

    def __post_init__(self):
        expect(
            0 < self.guidance <= LARGEST,
            "guidance",
            self.guidance,
            f"a scale in (0, {LARGEST:g}]",
            "use 1 for none",
        )

    @property
    def frozen(self) -> Mapping[str, Weights]:
        return {TEACHER: self.teacher}

    def check(self, denoiser: Denoiser, time_sampler: TimeSampler) -> None:
        if self.guidance != 1:
            check_guided(denoiser, "objective.guidance", self.guidance)

    def __call__(self, inputs: LossInputs) -> tuple[Float[Array, "batch"], Metrics]:
        ratio = _ratio(inputs.process, inputs.t)
        near = _near(self.gap, ratio, inputs)
        return _compared(inputs, self.distance, ratio, near, self._step(inputs, ratio, near))

    def _step(self, inputs: LossInputs, ratio: Times, near: Times) -> Data:
        """x_r by Heun's method on ``d (x / alpha) / d ratio = noise``; by Euler's where r is without noise."""
        model, process, x_t = inputs.model, inputs.process, inputs.x_t
        assert model is not None  # the task sets it
        r = _time(process, near)
        alpha, alpha_r = (expand(process.signal(time).alpha, x_t) for time in (inputs.t, r))
        change = expand(near - ratio, x_t)
        slope = model.guided(TEACHER, x_t, inputs.t, self.guidance).noise
        euler = x_t / alpha + change * slope
        again = model.guided(TEACHER, alpha_r * euler, r, self.guidance).noise
        heun = x_t / alpha + change * (slope + again) / 2
        return alpha_r * jnp.where(expand(near, x_t) > 0, heun, euler)


def _compared(
    inputs: LossInputs,
    distance: Distance,
    ratio: Times,
    near: Times,
    x_r: Data,
    weighting: Weighting | None = None,
) -> tuple[Float[Array, "batch"], Metrics]:
    """The distance of the predictions at both points, weighted, or over that of their noise levels."""
    assert inputs.model is not None  # the task sets it
    ours = inputs.prediction().x_0
    theirs = inputs.model(x_r, _time(inputs.process, near)).x_0
    theirs = jnp.where(expand(near, x_r) > 0, theirs, x_r)  # without noise, x_r is the data
    difference = ours - jax.lax.stop_gradient(theirs)
    gap = ratio - near
    weights = 1 / jnp.maximum(gap, jnp.finfo(gap.dtype).eps * ratio)
    if weighting is not None:
        weights = weighting(inputs.process.log_snr(inputs.t))
    return distance(difference) * weights, {
        "difference": jnp.mean(jnp.square(difference)),
        "gap": jnp.mean(gap / ratio),
    }


def _near(gap: Gap, ratio: Times, inputs: LossInputs) -> Times:
    assert inputs.model is not None  # the task sets it
    return gap(ratio, inputs.model.step)


def _ratio(process: Process, t: Times) -> Times:
    """The ratio of noise to signal at t."""
    return jnp.exp(-0.5 * process.log_snr(t))


def _time(process: Process, ratio: Times) -> Times:
    """The time with this ratio of noise to signal; at least the process's smallest."""
    return process.time(-2 * jnp.log(jnp.maximum(ratio, jnp.finfo(ratio.dtype).tiny)))
