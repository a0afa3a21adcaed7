"""Guidance by several conditions, each with a scale of its own."""

import dataclasses
from collections.abc import Collection, Sequence

from jaxdiff.errors import UserError, expect
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.guidance.classifier_free import (
    Interval,
    IntervalGuidance,
    Models,
    check_scales,
    refuse_guiding_model,
)
from jaxdiff.sampling.protocols import Conditions, GuidedDenoiser
from jaxdiff.typing import Data


@dataclasses.dataclass(frozen=True)
class PerCondition(IntervalGuidance):
    """Guidance per condition: a weighted sum of differences between predictions with more and fewer conditions.

    Chained, a condition acts given those before it (Brooks et al. 2023, "InstructPix2Pix", equation 3): for image and
    text ``p() + s_image (p(image) - p()) + s_text (p(image, text) - p(image))``, where a condition that is not named
    is dropped. Otherwise each acts by itself (Liu et al. 2022, "Composable Diffusion", equation 11):
    ``p() + s_image (p(image) - p()) + s_text (p(text) - p())``.

    All predictions are computed in one call on a larger batch, without those of factor 0.

    Attributes:
      conditions: names, in the order of the chain. Conditions that are not listed are never dropped.
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
        expect(
            len(set(names)) == len(names) > 0,
            "conditions",
            names,
            "at least one name, each once",
            "list each once",
        )
        expect(
            len(self.scales) == len(names),
            "scales",
            self.scales,
            f"{len(names)} scales, one per condition",
            "give one scale for each",
        )
        check_scales("scales", *self.scales)

    def guided(self, models: Models) -> GuidedDenoiser:
        refuse_guiding_model(models.guiding_model)
        self._check_names(models.conditions)
        terms = self._terms()
        factors = [factor for _, factor in terms]

        def weighted(found: list[Prediction]) -> Prediction:
            x_0 = _weighted(factors, [pair.x_0 for pair in found])
            noise = _weighted(factors, [pair.noise for pair in found])
            return Prediction(x_0, noise, found[-1].variance_fraction)

        return models.predictions(*(dropped for dropped, _ in terms)).combined(weighted)

    def dropped(self, names: Collection[str]) -> frozenset[str]:
        """The listed conditions that some prediction is without."""
        return frozenset().union(*(dropped for dropped, _ in self._terms()))

    @property
    def scale(self) -> float:
        """The largest scale."""
        return max(self.scales)

    def with_scale(self, scale: float) -> "PerCondition":
        """The same scale for all: in a chain, classifier-free guidance of all of them together."""
        return dataclasses.replace(self, scales=(scale,) * len(self.scales))

    def _check_names(self, conditions: Conditions) -> None:
        for name in self.conditions:
            if name not in conditions:
                raise UserError(
                    f"sampling.guidance.conditions={name!r}: expected conditions of the model, got {name!r}. "
                    f"Fix: name one of {', '.join(conditions) or 'none'}"
                )

    def _terms(self) -> list[tuple[frozenset[str], float]]:
        """For each prediction, the conditions that are dropped, and its factor, not 0. The factors add up to 1."""
        names = self.conditions
        if self.chained:
            dropped = [frozenset(names[i:]) for i in range(len(names) + 1)]
            steps = (1.0, *self.scales, 0.0)
            terms = [(drop, steps[i] - steps[i + 1]) for i, drop in enumerate(dropped)]
        else:
            alone = [
                (frozenset(names) - {name}, scale) for name, scale in zip(names, self.scales, strict=True)
            ]
            terms = [(frozenset(names), 1.0 - sum(self.scales)), *alone]
        return [(drop, factor) for drop, factor in terms if factor != 0]


def _weighted(factors: Sequence[float], values: Sequence[Data]) -> Data:
    products = [factor * value for factor, value in zip(factors, values, strict=True)]
    return sum(products[1:], products[0])
