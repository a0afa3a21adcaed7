"""Autoguidance: guidance by a weaker version of the model."""

import dataclasses

from jaxdiff.errors import UserError
from jaxdiff.sampling.guidance.classifier_free import (
    Interval,
    IntervalGuidance,
    Models,
    alone_at,
    check_scales,
    combine,
)
from jaxdiff.sampling.guidance.predictions import predictions
from jaxdiff.sampling.guidance.rules import Extrapolate, Rule
from jaxdiff.sampling.protocols import GuidedDenoiser


@dataclasses.dataclass(frozen=True)
class Autoguidance(IntervalGuidance):
    """Autoguidance: ``main + (scale - 1) (main - guiding)`` of Karras et al. 2024,
    "Guiding a Diffusion Model with a Bad Version of Itself".

    The guiding model is smaller or less trained, is given at sampling time, and sees the same conditions. Two models
    with similar errors differ most where the data are rare, so that moving away from the weaker one is moving towards
    the data, without the loss of diversity of `ClassifierFree`.

    Attributes:
      scale: guidance scale; 1 is off, and calls the main model only.
      rule: how the two predictions are combined, if not by the formula above.
      interval: the noise levels at which guidance acts; None for all.
    """

    scale: float = 1.0
    rule: Rule = Extrapolate()
    interval: Interval | None = None

    def __post_init__(self):
        check_scales("scale", self.scale)
        self.rule.check(self.scale)

    def guided(self, models: Models) -> GuidedDenoiser | None:
        if alone_at(self.rule, self.scale) == 0:
            return None
        guiding = models.guiding_model
        if guiding is None:
            raise UserError(
                "guiding_model=None: expected a guiding model for autoguidance, got None. "
                "Fix: give one (--guiding-model, or Generator.load(..., guiding_model=...)), or guidance scale 1"
            )

        both = models.predictions(()).beside(predictions(guiding, models.conditions, [()]))
        return combine(self.rule, self.scale, models.process, both)

    def with_scale(self, scale: float) -> "Autoguidance":
        return dataclasses.replace(self, scale=scale)
