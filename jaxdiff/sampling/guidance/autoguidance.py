"""Guidance by a worse model of the same thing."""

import dataclasses

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.guidance.classifier_free import Interval, combine, predict, within
from jaxdiff.sampling.guidance.rules import Extrapolate, Rule
from jaxdiff.sampling.loop import ConditionalDenoise, Conditions, DenoiseFn, StatefulDenoiser
from jaxdiff.typing import Images, Keys, Scalar


@dataclasses.dataclass(frozen=True)
class Autoguidance:
    """``main + (scale - 1) (main - guide)`` of Karras et al. 2024,
    "Guiding a Diffusion Model with a Bad Version of Itself".

    The guide is a smaller or less trained model, handed over when images are made, and sees the same conditions. Two
    models that err alike err further apart where the data are thin, so that away from the guide is towards the data,
    without the loss of variety that `ClassifierFree` pays with.

    Attributes:
      scale: 1 is off, and calls no guide.
      rule: how the two predictions become one, if not by the formula above.
      interval: the noise levels at which guidance acts; None for all.
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
        def main(x: Images, t: Scalar) -> Prediction:
            return predict(denoise, conditions, [()], x, t)[0]

        if self.rule.alone(self.scale) == 0:
            return main
        if guide is None:
            fix = "give one (--guide, or Generator.load(..., guide=...)), or guidance scale 1"
            raise UserError(f"guide=None: autoguidance needs another model. Fix: {fix}")
        guided = combine(
            self.rule, self.scale, process,
            lambda x, t: (main(x, t), predict(guide, conditions, [()], x, t)[0]),
        )  # fmt: skip
        return within(self.interval, process, guided, main)

    def with_scale(self, scale: float) -> "Autoguidance":
        return dataclasses.replace(self, scale=scale)
