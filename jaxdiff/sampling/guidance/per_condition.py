"""Guidance by several conditions, each with a scale of its own."""

import dataclasses
from collections.abc import Sequence

from jaxdiff.errors import UserError, require
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.guidance.classifier_free import Interval, predict, refuse_guide, within
from jaxdiff.sampling.loop import ConditionalDenoise, Conditions, DenoiseFn, StatefulDenoiser
from jaxdiff.typing import Images, Keys, Scalar


@dataclasses.dataclass(frozen=True)
class PerCondition:
    """A sum of differences between predictions that see more and that see less, each with its own scale.

    Chained, a condition counts given those before it (Brooks et al. 2023, "InstructPix2Pix", equation 3): for image
    and text ``p() + s_image (p(image) - p()) + s_text (p(image, text) - p(image))``, with null for what is not named.
    Otherwise each counts by itself (Liu et al. 2022, "Composable Diffusion", equation 11):
    ``p() + s_image (p(image) - p()) + s_text (p(text) - p())``.

    All predictions come of one call on a larger batch, without those whose factor is 0.

    Attributes:
      conditions: names, in the order of the chain. Conditions that are not named are always shown.
      scales: one for each of them; all 1 in a chain is the conditional model.
      chained: see above.
      interval: the noise levels at which guidance acts, as for `ClassifierFree`.
    """

    conditions: tuple[str, ...]
    scales: tuple[float, ...]
    chained: bool = True
    interval: Interval | None = None

    def __post_init__(self):
        names = self.conditions
        require(len(set(names)) == len(names) > 0, "conditions", names, "each is named once", "name them")
        require(
            len(self.scales) == len(names), "scales", self.scales,
            f"there are {len(names)} conditions", "give one scale for each",
        )  # fmt: skip

    def __call__(
        self,
        denoise: ConditionalDenoise,
        process: Process,
        conditions: Conditions,
        keys: Keys,
        guide: ConditionalDenoise | None = None,
    ) -> DenoiseFn | StatefulDenoiser:
        refuse_guide(guide)
        for name in self.conditions:
            if name not in conditions:
                fix = f"name one of {', '.join(conditions) or 'none'}"
                raise UserError(
                    f"sampling.guidance.conditions={name!r}: the model has no such condition. Fix: {fix}"
                )
        terms = [(dropped, factor) for dropped, factor in self._terms() if factor != 0]

        def guided(x: Images, t: Scalar) -> Prediction:
            found = predict(denoise, conditions, [dropped for dropped, _ in terms], x, t)
            factors = [factor for _, factor in terms]
            x_0 = _weighted(factors, [pair.x_0 for pair in found])
            noise = _weighted(factors, [pair.noise for pair in found])
            return Prediction(x_0, noise, found[-1].variance_fraction)

        def conditional(x: Images, t: Scalar) -> Prediction:
            return predict(denoise, conditions, [()], x, t)[0]

        return within(self.interval, process, guided, conditional)

    @property
    def scale(self) -> float:
        """The largest."""
        return max(self.scales)

    def with_scale(self, scale: float) -> "PerCondition":
        """The same scale for all: in a chain, classifier-free guidance of all of them together."""
        return dataclasses.replace(self, scales=(scale,) * len(self.scales))

    def _terms(self) -> list[tuple[frozenset[str], float]]:
        """For each prediction, the conditions that it does not see, and its factor. The factors add up to 1."""
        names = self.conditions
        if self.chained:
            dropped = [frozenset(names[i:]) for i in range(len(names) + 1)]
            steps = (1.0, *self.scales, 0.0)
            return [(drop, steps[i] - steps[i + 1]) for i, drop in enumerate(dropped)]
        alone = [(frozenset(names) - {name}, scale) for name, scale in zip(names, self.scales, strict=True)]
        return [(frozenset(names), 1.0 - sum(self.scales)), *alone]


def _weighted(factors: Sequence[float], values: Sequence[Images]) -> Images:
    products = [factor * value for factor, value in zip(factors, values, strict=True)]
    return sum(products[1:], products[0])
