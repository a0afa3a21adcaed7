"""Classifier-free guidance, and the base of other guidance that combines predictions."""

import copy
import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdiff.errors import UserError, expect
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.guidance.rules import Extrapolate, Rule, Scale
from jaxdiff.sampling.protocols import ConditionalDenoise, Conditions, GuidedDenoiser, stateless
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

    denoise: ConditionalDenoise
    process: Process
    conditions: Conditions
    guiding_model: ConditionalDenoise | None

    def conditional(self, x: Data, t: Scalar) -> Prediction:
        """The prediction with all conditions."""
        return predict(self.denoise, self.conditions, [()], x, t)[0]


class IntervalGuidance:
    """Guidance within an interval of noise levels; elsewhere the conditional model is used alone.

    Attributes:
      interval: the noise levels; None for all.
    """

    interval: Interval | None

    def __call__(
        self,
        denoise: ConditionalDenoise,
        process: Process,
        conditions: Conditions,
        keys: Keys,
        guiding_model: ConditionalDenoise | None = None,
    ) -> GuidedDenoiser:
        models = Models(denoise, process, conditions, guiding_model)
        inside, outside = self.guided(models), stateless(models.conditional)
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
        dropped = ((), tuple(models.conditions))  # in the conditional branch, and in the unconditional one

        def branches(x: Data, t: Scalar) -> list[Prediction]:
            shown = dropped if alone is None else dropped[alone : alone + 1]
            return predict(models.denoise, models.conditions, shown, x, t)

        if alone == 1:
            return stateless(lambda x, t: branches(x, t)[0])
        return combine(self.rule, self.scale, models.process, branches)

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


def predict(
    denoise: ConditionalDenoise,
    conditions: Conditions,
    dropped: Sequence[Collection[str]],
    x: Data,
    t: Scalar,
) -> list[Prediction]:
    """One prediction for each item of `dropped`, the names of conditions to ignore; all in one call."""
    branches, batch = len(dropped), x.shape[0]
    # Copies of an example are adjacent, so that a batch split over devices needs no communication.
    x, conditions = jax.tree.map(lambda value: jnp.repeat(value, branches, axis=0), (x, conditions))
    drop = {name: jnp.tile(jnp.array([name in names for names in dropped]), batch) for name in conditions}
    together = denoise(x, t, conditions, drop)
    return [jax.tree.map(lambda value, i=i: value[i::branches], together) for i in range(branches)]


def combine(
    rule: Rule, scale: Scale, process: Process, both: Callable[[Data, Scalar], Sequence[Prediction]]
) -> GuidedDenoiser:
    """The denoiser that combines two predictions by `rule`: the desired one first, then the one to move away from."""

    def call(x: Data, t: Scalar, state: Any) -> tuple[Prediction, Any]:
        cond, uncond = both(x, t)
        guided, state = rule(state, scale, cond, uncond, process.signal(t))
        # The variance is that of the conditional model: it is not extrapolated.
        return guided._replace(variance_fraction=cond.variance_fraction), state

    return GuidedDenoiser(call, rule.init)


def refuse_guiding_model(guiding_model: ConditionalDenoise | None) -> None:
    """Raise a `UserError` where a second model is given to guidance that uses none."""
    if guiding_model is not None:
        raise UserError(
            "guiding_model=given: expected no second model with this recipe's guidance, got one. "
            "Fix: leave it out, or use Autoguidance"
        )


def _within(
    interval: Interval, process: Process, inside: GuidedDenoiser, outside: GuidedDenoiser
) -> GuidedDenoiser:
    """`inside` in the interval, and `outside` elsewhere, where the guidance state is unchanged."""

    def call(x: Data, t: Scalar, state: Any) -> tuple[Prediction, Any]:
        return jax.lax.cond(interval.contains(process, t), inside.call, outside.call, x, t, state)

    return GuidedDenoiser(call, inside.init)


def _require_conditions(scale: Scale, conditions: Conditions) -> None:
    if not conditions:
        raise UserError(
            f"sampling.guidance.scale={scale!r}: expected a model with conditions, got one without. "
            "Fix: use 1 (off), or a model with conditions"
        )
