"""Classifier-free guidance, and what it shares with other guidance by two predictions."""

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp

from jaxdiff.errors import UserError, require
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.guidance.rules import Extrapolate, Rule
from jaxdiff.sampling.loop import ConditionalDenoise, Conditions, DenoiseFn, StatefulDenoiser
from jaxdiff.typing import Array, Bool, Images, Keys, Scalar


@dataclasses.dataclass(frozen=True)
class Interval:
    """The noise levels ``sigma_min < sigma / alpha <= sigma_max`` (Kynkäänniemi et al. 2024, equation 5).

    ``sigma / alpha`` is the paper's sigma, and the same for every process; infinity is pure noise.
    """

    sigma_min: float = 0.0
    sigma_max: float = math.inf

    def __post_init__(self):
        require(
            0 <= self.sigma_min < self.sigma_max, "sigma_max", self.sigma_max,
            f"no noise level lies above sigma_min={self.sigma_min}", "give 0 <= sigma_min < sigma_max",
        )  # fmt: skip

    def contains(self, process: Process, t: Scalar) -> Bool[Array, ""]:
        level = jnp.exp(-process.log_snr(t) / 2)
        return (self.sigma_min < level) & (level <= self.sigma_max)


@dataclasses.dataclass(frozen=True)
class ClassifierFree:
    """``null + scale (conditional - null)`` (Ho & Salimans 2022, whose w is ``scale - 1``).

    Scale 1 is the conditional model and 0 the model without conditions, at the cost of one call; any other
    scale runs both in one call on a doubled batch.

    Attributes:
      scale: 1 is off.
      rule: how the two predictions become one, if not by the formula above.
      interval: the noise levels at which guidance acts; at the others the conditional model is used alone. None means
        all levels.
    """

    scale: float = 1.0
    rule: Rule = Extrapolate()
    interval: Interval | None = None

    def __post_init__(self):
        self.rule.check(self.scale)

    def __call__(
        self,
        denoise: ConditionalDenoise,
        process: Process,
        conditions: Conditions,
        keys: Keys,
        guide: ConditionalDenoise | None = None,
    ) -> DenoiseFn | StatefulDenoiser:
        refuse_guide(guide)
        alone = self.rule.alone(self.scale)
        if alone != 0:
            require_conditions(self.scale, conditions)
        shown = ((), tuple(conditions))  # what is dropped in the conditional branch, and in the other

        def branches(*which: int) -> Callable[[Images, Scalar], list[Prediction]]:
            return lambda x, t: predict(denoise, conditions, [shown[i] for i in which], x, t)

        def conditional(x: Images, t: Scalar) -> Prediction:
            return branches(0)(x, t)[0]

        if alone == 0:
            return conditional
        if alone == 1:
            return within(self.interval, process, lambda x, t: branches(1)(x, t)[0], conditional)
        guided = combine(self.rule, self.scale, process, branches(0, 1))
        return within(self.interval, process, guided, conditional)

    def with_scale(self, scale: float) -> "ClassifierFree":
        return dataclasses.replace(self, scale=scale)


def predict(
    denoise: ConditionalDenoise,
    conditions: Conditions,
    dropped: Sequence[Collection[str]],
    x: Images,
    t: Scalar,
) -> list[Prediction]:
    """One prediction for each item of `dropped`, the names of conditions that are not to be seen; in one call."""
    branches, batch = len(dropped), x.shape[0]
    # Each image stands beside its copies, so that a batch split over devices stays where it is.
    x, conditions = jax.tree.map(lambda value: jnp.repeat(value, branches, axis=0), (x, conditions))
    drop = {name: jnp.tile(jnp.array([name in names for names in dropped]), batch) for name in conditions}
    together = denoise(x, t, conditions, drop)
    return [jax.tree.map(lambda value, i=i: value[i::branches], together) for i in range(branches)]


def combine(
    rule: Rule, scale: float, process: Process, both: Callable[[Images, Scalar], Sequence[Prediction]]
) -> DenoiseFn | StatefulDenoiser:
    """The denoiser that `rule` makes of two predictions: the one wanted, and the one to get away from."""

    def call(history: object, x: Images, t: Scalar) -> tuple[Prediction, object]:
        given, null = both(x, t)
        guided, history = rule(history, scale, given, null, process.signal(t))
        # The spread of the conditional model: there is nothing to extrapolate.
        return guided._replace(variance_fraction=given.variance_fraction), history

    return StatefulDenoiser(call, rule.init) if rule.remembers else lambda x, t: call((), x, t)[0]


def within(
    interval: Interval | None, process: Process, inside: DenoiseFn | StatefulDenoiser, outside: DenoiseFn
) -> DenoiseFn | StatefulDenoiser:
    """`inside` in the interval and `outside` elsewhere, where nothing is learned either."""
    if interval is None:
        return inside

    def choose(guided: Callable, plain: Callable) -> Callable:
        return lambda *state: jax.lax.cond(interval.contains(process, state[-1]), guided, plain, *state)

    if isinstance(inside, StatefulDenoiser):
        return StatefulDenoiser(
            choose(inside.call, lambda history, x, t: (outside(x, t), history)), inside.init
        )
    return choose(inside, outside)


def refuse_guide(guide: ConditionalDenoise | None) -> None:
    require(
        guide is None, "guide", guide, "this recipe's guidance has no use for another model",
        "leave it out, or take Autoguidance",
    )  # fmt: skip


def require_conditions(scale: object, conditions: Conditions) -> None:
    if not conditions:
        fix = "use 1 (off), or a model with conditions"
        raise UserError(
            f"sampling.guidance.scale={scale!r}: there is no condition to be guided by. Fix: {fix}"
        )
