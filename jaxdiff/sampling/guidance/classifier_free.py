"""Classifier-free guidance, and the base of other guidance that combines predictions."""

import copy
import dataclasses
import math
import operator
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdiff.errors import UserError, expect
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.guidance.predictions import Predictions, predictions
from jaxdiff.sampling.guidance.rules import Extrapolate, Rule, Scale
from jaxdiff.sampling.protocols import Conditional, Conditions, GuidedDenoiser
from jaxdiff.typing import Array, Bool, Data, Keys, Scalar

LARGEST = 1000.0
"""Beyond this, guidance leaves nothing of the model's prediction."""

BOUNDS = ("sigma_min", "sigma_max")
"""The numbers of an interval."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Interval:
    """The noise levels ``sigma_min < sigma / alpha <= sigma_max`` (Kynkäänniemi et al. 2024, equation 5).

    ``sigma / alpha`` is the paper's sigma, and the same for every process; infinity is pure noise.
    """

    sigma_min: float = 0.0
    sigma_max: float = math.inf

    def __post_init__(self):
        expect(
            0 <= self.sigma_min < self.sigma_max,
            "sigma_max",
            self.sigma_max,
            f"a noise level > sigma_min={self.sigma_min} >= 0",
            "give 0 <= sigma_min < sigma_max",
        )

    def contains(self, process: Process, t: Scalar) -> Bool[Array, ""]:
        """Whether the noise level of time t lies in the interval."""
        level = jnp.exp(-process.log_snr(t) / 2)
        return (self.sigma_min < level) & (level <= self.sigma_max)


class Models(NamedTuple):
    """What guidance receives in one call; see `jaxdiff.sampling.protocols.Guidance`."""

    denoise: Conditional
    process: Process
    conditions: Conditions
    guiding_model: Conditional | None

    def predictions(self, *dropped: Collection[str]) -> Predictions:
        """Predictions of the model, each without the conditions of these names."""
        return predictions(self.denoise, self.conditions, dropped)


class IntervalGuidance:
    """Guidance within an interval of noise levels; elsewhere the conditional model is used alone.

    Attributes:
      interval: the noise levels; None for all.
    """

    interval: Interval | None

    def __call__(
        self,
        denoise: Conditional,
        process: Process,
        conditions: Conditions,
        keys: Keys,
        guiding_model: Conditional | None = None,
    ) -> GuidedDenoiser:
        models = Models(denoise, process, conditions, guiding_model)
        inside, outside = self.guided(models), models.predictions(()).combined(operator.itemgetter(0))
        if inside is None:
            return outside
        return inside if self.interval is None else _within(self.interval, process, inside, outside)

    def guided(self, models: Models) -> GuidedDenoiser | None:
        """The guided denoiser; None if it is the conditional model at every noise level."""
        raise NotImplementedError

    @property
    def numbers(self) -> dict[str, Any]:
        """The bounds of the interval; of `ClassifierFree` and `Autoguidance` also a scale that needs both models."""
        bounds = {} if self.interval is None else {name: getattr(self.interval, name) for name in BOUNDS}
        rule, scale = (getattr(self, name, None) for name in ("rule", "scale"))
        needs_both = isinstance(rule, Rule) and scale is not None and alone_at(rule, scale) is None
        return {**bounds, "scale": scale} if needs_both else bounds

    def with_numbers(self: T, numbers: Mapping[str, Any]) -> T:
        """See `jaxdiff.sampling.protocols.Numeric`."""
        bounds = {name: numbers[name] for name in BOUNDS if name in numbers}
        changes = {"interval": _unchecked(getattr(self, "interval", None), bounds)} if bounds else {}
        return _unchecked(self, changes | {name: numbers[name] for name in numbers if name not in BOUNDS})


@runtime_checkable
class Limited(Protocol):
    """A guidance that may act in an interval of noise levels only; None for all levels."""

    @property
    def interval(self) -> Interval | None: ...


@dataclasses.dataclass(frozen=True)
class ClassifierFree(IntervalGuidance):
    """Classifier-free guidance: ``uncond + scale (cond - uncond)`` (Ho & Salimans 2022, whose w is ``scale - 1``).

    Scale 1 is the conditional model and 0 the model without conditions, at the cost of one call; any other
    scale runs both in one call on a doubled batch.

    Attributes:
      scale: guidance scale; 1 is off.
      rule: how the two predictions are combined, if not by the formula above.
      interval: the noise levels at which guidance acts; at the others the conditional model is used alone. None means
        all levels.
    """

    scale: float = 1.0
    rule: Rule = Extrapolate()
    interval: Interval | None = None

    def __post_init__(self):
        check_scales("scale", self.scale)
        self.rule.check(self.scale)

    def guided(self, models: Models) -> GuidedDenoiser | None:
        refuse_guiding_model(models.guiding_model)
        alone = alone_at(self.rule, self.scale)
        if alone == 0:
            return None
        _require_conditions(self.scale, models.conditions)
        everything = tuple(models.conditions)
        if alone == 1:
            return models.predictions(everything).combined(operator.itemgetter(0))
        return combine(self.rule, self.scale, models.process, models.predictions((), everything))

    def dropped(self, names: Collection[str]) -> frozenset[str]:
        """All conditions, unless guidance is off."""
        return frozenset(() if self.rule.alone(self.scale) == 0 else names)

    def with_scale(self, scale: float) -> "ClassifierFree":
        return dataclasses.replace(self, scale=scale)


def alone_at(rule: Rule, scale: Scale) -> int | None:
    """`Rule.alone`; None for a scale that is an argument of a program, since `numbers` has only such scales."""
    return None if isinstance(scale, jax.Array) else rule.alone(scale)


def _unchecked(part: T, changes: Mapping[str, Any]) -> T:
    """A copy of a frozen dataclass with other fields, without the checks of its constructor."""
    found = copy.copy(part)
    for name, value in changes.items():
        object.__setattr__(found, name, value)
    return found


def check_scales(field: str, *scales: int | float) -> None:
    """Raise `UserError` unless each guidance scale is a number between -`LARGEST` and `LARGEST`."""
    for scale in scales:
        expect(abs(scale) <= LARGEST, field, scale, f"a guidance scale of at most {LARGEST:g}",
               "choose one; published models use 0 to 30")  # fmt: skip


def combine(rule: Rule, scale: Scale, process: Process, both: Predictions) -> GuidedDenoiser:
    """The denoiser that combines two predictions by `rule`: the desired one first, then the one to move away from."""

    def call(x: Data, t: Scalar, state: Any) -> tuple[Prediction, Any]:
        (cond, uncond), of_models = both.call(x, t, state[0])
        guided, of_rule = rule(state[1], scale, cond, uncond, process.signal(t))
        # The variance is that of the conditional model: it is not extrapolated.
        return guided._replace(variance_fraction=cond.variance_fraction), (of_models, of_rule)

    return GuidedDenoiser(call, lambda x: (both.init(x), rule.init(x)))


def refuse_guiding_model(guiding_model: Conditional | None) -> None:
    """Raise a `UserError` where a second model is given to guidance that uses none."""
    if guiding_model is not None:
        raise UserError(
            "guiding_model=given: expected no second model with this recipe's guidance, got one. "
            "Fix: leave it out, or use Autoguidance"
        )


def _within(
    interval: Interval, process: Process, inside: GuidedDenoiser, outside: GuidedDenoiser
) -> GuidedDenoiser:
    """`inside` in the interval, and `outside` elsewhere. Each begins with a fresh state where it takes over."""

    def guide(x: Data, t: Scalar, state: Any) -> tuple[Prediction, Any]:
        prediction, of_inside = inside.call(x, t, state[0])
        return prediction, (of_inside, outside.init(x))

    def do_not(x: Data, t: Scalar, state: Any) -> tuple[Prediction, Any]:
        prediction, of_outside = outside.call(x, t, state[1])
        return prediction, (inside.init(x), of_outside)

    def call(x: Data, t: Scalar, state: Any) -> tuple[Prediction, Any]:
        return jax.lax.cond(interval.contains(process, t), guide, do_not, x, t, state)

    return GuidedDenoiser(call, lambda x: (inside.init(x), outside.init(x)))


def _require_conditions(scale: Scale, conditions: Conditions) -> None:
    if not conditions:
        raise UserError(
            f"sampling.guidance.scale={scale!r}: expected a model with conditions, got one without. "
            "Fix: use 1 (off), or a model with conditions"
        )
