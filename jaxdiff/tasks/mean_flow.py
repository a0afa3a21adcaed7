"""MeanFlow: learns the average velocity of a flow, so that a step of any length is one call of the model.

The average velocity u(x_t, r, t) of the probability flow between r and t leads from x_t to ``x_r = x_t - (t - r) u``. A
denoiser that reads r (`Conditioner.span`) predicts it as a pair (x_0, noise), the straight line from x_t that meets the
trajectory at r. So every process and parameterization has a flow map, ``X = alpha_r x_0 + sigma_r noise``, and r = t is
the plain denoiser. X stays where it is while x_t moves along its trajectory. For a rectified flow this is the identity
of MeanFlow, whose left side is the derivative along (v, 0, 1):

    dX/dt = v - u - (t - r) du/dt = 0
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.conditioning.conditioner import SPAN
from jaxdiff.conditioning.guidance_scale import GuidanceScale
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import between, expect, one_of, positive
from jaxdiff.process.gaussian import Process, diffuse, expand
from jaxdiff.process.prediction import Prediction, Velocity, target
from jaxdiff.process.time_sampling import TimeSampler
from jaxdiff.tasks.consistency_models import LARGEST, TEACHER, check_guided
from jaxdiff.tasks.distances import Squared
from jaxdiff.tasks.objectives import LossInputs, Objective
from jaxdiff.typing import Array, Data, Float, Key, Metrics, Times, Weights

TANGENTS = ("example", "model")


@dataclasses.dataclass(frozen=True)
class MeanFlow(Objective):
    """``|e|^2 / sg(|e|^2 + c)^power`` with ``e = u - sg(v - (t - r) du/dt)`` (Geng et al. 2025, "Mean flows").

    t has the distribution of the task's time sampler. r is the smaller one of two such draws, given that t is the
    larger; at a share of the examples r is t, which is flow matching. ``|e|^2`` is a mean over the values of an
    example. For other processes than a rectified flow, u is the velocity of the predicted pair, and its target is the
    one at which X of the module's docstring stays.

    Classifier-free guidance is learned as a part of the flow: for v stands ``omega v + kappa u(c) + (1 - omega - kappa)
    u(null)``, with u at r = t and ``omega = guidance (1 - kappa)``. Sampling then needs guidance 1, which is one call.

    With a `teacher`, v is its guided velocity in place of an example's, and the derivative is taken along it: the flow
    map of a trained model is distilled (Sabour et al. 2025, "Align your flow", Eulerian map distillation). With all r
    at the data it is a continuous-time consistency model (Lu & Song 2024).

    Attributes:
      plain: the share of examples with r = t.
      to_data: the share of the others with r = 0, a step to the data.
      teacher: the weights of a trained denoiser of the same architecture without a span, and without the condition
        `scales`; None to learn from the examples.
      guidance: the guidance scale that is learned, 1 or more; 1 is none.
      scales: the name of a condition `GuidanceScale`, whose value is the scale of each example; None for `guidance`.
      kappa: the share of the model's own prediction in guidance, in [0, 1); None for ``1 - 1 / guidance``, where omega
        is 1, as in improved MeanFlow.
      tangent: the direction of x_t in the derivative. "example": the velocity of its data and noise. "model": the
        velocity that the model predicts, with less variance, at the cost of a call (Geng et al. 2025, "Improved mean
        flows").
      power: exponent of the adaptive weight; 0 for the squared error.
      c: keeps the weight of small errors finite.
      warmup_steps: optimizer steps in which the derivative's factor grows from 0 to 1; at 0 it is flow matching.
    """

    plain: float = 0.75
    to_data: float = 0.0
    teacher: Weights | None = None
    guidance: float = 1.0
    scales: str | None = None
    kappa: float | None = None
    tangent: str = "example"
    power: float = 1.0
    c: float = 1e-3
    warmup_steps: int = 0

    def __post_init__(self):
        between(self, "plain", 0.0, 1.0)
        between(self, "to_data", 0.0, 1.0)
        between(self, "guidance", 1.0, LARGEST)
        between(self, "kappa", 0.0, 1.0, open_high=True)
        one_of(self, "tangent", TANGENTS)
        between(self, "power", 0.0, 1.0)
        positive(self, "c")
        between(self, "warmup_steps", 0, math.inf)
        own = self.teacher is None or (self.kappa is None and self.tangent == "example")
        expected = "the velocity of the teacher alone"
        expect(own, "teacher", self.teacher, expected, "leave kappa and tangent out", "kappa or tangent")
        one = self.scales is None or self.guidance == 1
        expect(one, "guidance", self.guidance, "1 with scales, which replace it", "leave one of them out")

    @property
    def frozen(self) -> Mapping[str, Weights]:
        return {} if self.teacher is None else {TEACHER: self.teacher}

    @property
    def added(self) -> frozenset[str]:
        return frozenset({SPAN} if self.scales is None else {SPAN, self.scales})

    def draw(self, key: Key[Array, ""], batch: int) -> dict[str, Array]:
        """Which examples have r = t or r = 0, and where between data and t the others' r lies."""
        key_plain, key_place, key_data = jax.random.split(key, 3)
        plain = jax.random.bernoulli(key_plain, self.plain, (batch,))
        place = jax.random.uniform(key_place, (batch,))
        to_data = jax.random.bernoulli(key_data, self.to_data, (batch,))
        return {"plain": plain, "place": place, "to_data": to_data}

    def __call__(self, inputs: LossInputs) -> tuple[Float[Array, "batch"], Metrics]:
        model, process, t, r = inputs.model, inputs.process, inputs.t, self._end(inputs)
        assert model is not None  # the task sets it
        velocity, tangent = jax.lax.stop_gradient(self._velocities(inputs))

        def flow_map(x_t: Data, t: Times) -> tuple[Data, Data]:
            pair = model(x_t, t, r)
            return diffuse(process, pair.x_0, pair.noise, r), _velocity(process, t, pair)

        _, drift, average = jax.jvp(flow_map, (inputs.x_t, t), (tangent, jnp.ones_like(t)), has_aux=True)
        # Along the tangent w the drift is w - u - (t - r) du/dt, so the target is v - (t - r) du/dt.
        change = self._warmth(model.step) * (average + drift - tangent)
        error = average - jax.lax.stop_gradient(velocity + change)
        square = Squared()(error)
        weight = jax.lax.stop_gradient(square + self.c) ** -self.power
        return weight * square, {"squared_error": jnp.mean(square), "span": jnp.mean(t - r)}

    def check(self, denoiser: Denoiser, time_sampler: TimeSampler) -> None:
        conditions = denoiser.conditioner.conditions
        expect(denoiser.conditioner.span is not None, "denoiser.conditioner.span", None,
               "a module that reads the end of a step", "use jaxdiff.conditioning.vector:NoiseLevel")  # fmt: skip
        expect(not isinstance(denoiser.process, nn.Module), "denoiser.process", type(denoiser.process).__name__,
               "a fixed process, whose flow is learned", "use one such as RectifiedFlow", "a learned one")  # fmt: skip
        if self.scales is not None:
            condition = conditions.get(self.scales)
            found = isinstance(condition, GuidanceScale) and condition.low >= 1
            expected = "the name of a condition GuidanceScale with scales of 1 or more"
            expect(found, "objective.scales", self.scales, expected, "add one")
        if self.scales is not None or self.guidance != 1:
            check_guided(denoiser, "objective.guidance", self.scales or self.guidance, self.added)
        label, process = denoiser.parameterization.label, cast(Process, denoiser.process)
        moves = bool(jax.grad(lambda t: label(process, t))(0.4) != 0)
        expected = "a label that changes smoothly with time"
        expect(moves, "denoiser.parameterization.label", label, expected, "use one such as Time")

    def _end(self, inputs: LossInputs) -> Times:
        """r. Of two uniform numbers, the smaller is uniform below the larger, and quantiles keep their order."""
        below = inputs.time_sampler.quantile(inputs.u * inputs.drawn["place"], inputs.process)
        r = jnp.where(inputs.drawn["to_data"], 0.0, jnp.minimum(below, inputs.t))
        return jnp.where(inputs.drawn["plain"], inputs.t, r)

    def _warmth(self, step: Any) -> float | Array:
        """The factor of the derivative."""
        return 1.0 if self.warmup_steps == 0 else jnp.minimum(1.0, jnp.asarray(step) / self.warmup_steps)

    def _velocities(self, inputs: LossInputs) -> tuple[Data, Data]:
        """The velocity v to learn, and the tangent of the derivative."""
        model, process, x_t, t = inputs.model, inputs.process, inputs.x_t, inputs.t
        assert model is not None  # the task sets it
        if self.teacher is not None:
            velocity = _velocity(process, t, model.guided(TEACHER, x_t, t, self._given(inputs)))
            return velocity, velocity
        velocity = target(Velocity(), process, t, inputs.x_0, inputs.noise)
        if self.guidance == 1 and self.scales is None and self.tangent == "example":
            return velocity, velocity
        own = _velocity(process, t, model(x_t, t))
        if self.guidance != 1 or self.scales is not None:
            without = _velocity(process, t, model.without_conditions(x_t, t))
            scale = expand(jnp.asarray(self._given(inputs), x_t.dtype), x_t)
            velocity = self._guided(scale, velocity, own, without)
        return velocity, velocity if self.tangent == "example" else own

    def _given(self, inputs: LossInputs) -> float | Times:
        """The guidance scale, of all or of each example."""
        assert inputs.model is not None  # the task sets it
        return self.guidance if self.scales is None else inputs.model.fields[self.scales]

    def _guided(self, scale: Float[Array, "..."], velocity: Data, own: Data, without: Data) -> Data:
        """The guided v. Where conditions are dropped `own` is `without`, and the mean is that of the data."""
        kappa = 1 - 1 / scale if self.kappa is None else self.kappa
        omega = scale * (1 - kappa)
        return omega * velocity + kappa * own + (1 - omega - kappa) * without


def _velocity(process: Process, t: Times, pair: Prediction) -> Data:
    return target(Velocity(), process, t, pair.x_0, pair.noise)
