"""Metrics of samples that must agree with a given image: super-resolution, inpainting, colourization."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.data.degradations import Degradation
from jaxdiff.evaluation.baselines import levels
from jaxdiff.evaluation.formats import decimals, fraction, significant
from jaxdiff.evaluation.metric import Batch, Metric, Row
from jaxdiff.evaluation.metrics import paired
from jaxdiff.evaluation.metrics.intra_class import FeatureDistance, pair_settings
from jaxdiff.evaluation.metrics.moments import check_finite
from jaxdiff.evaluation.metrics.running import Mean, MeanMetric
from jaxdiff.evaluation.protocols import ImageDistance


@dataclasses.dataclass(frozen=True)
class Consistency(MeanMetric):
    """RMS between the downsampled samples and the given small images. See `paired.inconsistency`.

    Attributes:
      condition: name of the given small image.
      factor: ratio of the sides of samples and small images.
    """

    condition: str
    factor: int

    def mean(self, batch: Batch) -> Mean:
        return paired.inconsistency(batch.images, batch.fields[self.condition], self.factor)

    def compute(self, state: Mean) -> dict[str, Any]:
        return {"consistency": state.root}

    def table(self) -> Sequence[Row]:
        return [Row("consistency RMS, levels", "consistency", significant)]


@dataclasses.dataclass(frozen=True)
class MeanColourError(MeanMetric):
    """Shift of colour against the truth. See `paired.mean_colour_error`."""

    def mean(self, batch: Batch) -> Mean:
        return paired.mean_colour_error(batch.images, _truth(batch))

    def compute(self, state: Mean) -> dict[str, Any]:
        return {"mean_colour_error": state.value}

    def table(self) -> Sequence[Row]:
        return [Row("mean-colour error, levels", "mean_colour_error", significant)]


@dataclasses.dataclass(frozen=True)
class Psnr(MeanMetric):
    """Peak signal-to-noise ratio against the truth, of all images together. See `paired.psnr`."""

    def mean(self, batch: Batch) -> Mean:
        return paired.squared_error(batch.images, _truth(batch))

    def compute(self, state: Mean) -> dict[str, Any]:
        return {"psnr": paired.psnr(state)}

    def table(self) -> Sequence[Row]:
        return [Row("PSNR, dB", "psnr", significant)]

    def notes(self, values: Any) -> Sequence[str]:
        del values
        return ["PSNR says little about quality: a blurred image scores best"]


@dataclasses.dataclass(frozen=True)
class Ssim(MeanMetric):
    """Structural similarity to the truth, the mean over images; 1 for equal ones. See `paired.ssim`."""

    def mean(self, batch: Batch) -> Mean:
        return paired.ssim(batch.images, _truth(batch))

    def compute(self, state: Mean) -> dict[str, Any]:
        return {"ssim": state.value}

    def table(self) -> Sequence[Row]:
        return [Row("SSIM", "ssim", decimals)]


@dataclasses.dataclass(frozen=True)
class DistanceToTruth(MeanMetric):
    """Distance of samples to the truth, the mean over images: with `PerceptualDistance` the LPIPS of restoration.

    Attributes:
      distance: LPIPS, or another distance of two images.
    """

    distance: ImageDistance = FeatureDistance()

    def mean(self, batch: Batch) -> Mean:
        found = np.asarray(self.distance(batch.images, _truth(batch)), np.float64)
        check_finite(found)
        return Mean(float(found.sum()), len(found))

    def compute(self, state: Mean) -> dict[str, Any]:
        return {"distance_to_truth": state.value}

    def table(self) -> Sequence[Row]:
        return [Row(f"{self.distance.name}, to the truth", "distance_to_truth", decimals)]

    def settings(self) -> dict[str, Any]:
        return pair_settings(self.distance)


@dataclasses.dataclass(frozen=True)
class GeneratedError(MeanMetric):
    """RMS error against the truth over the pixels that the model generates.

    Attributes:
      key: name of the value in the report.
    """

    key: str = "error"

    def mean(self, batch: Batch) -> Mean:
        return paired.squared_error(batch.images, _truth(batch), batch.generated)

    def compute(self, state: Mean) -> dict[str, Any]:
        return {self.key: state.root}

    def table(self) -> Sequence[Row]:
        return [Row("error, levels", self.key, significant)]


@dataclasses.dataclass(frozen=True)
class KnownKept(MeanMetric):
    """Fraction of the known pixels that samples keep exactly; None where no pixel is known."""

    def mean(self, batch: Batch) -> Mean:
        if batch.generated is None:
            return Mean()
        return paired.fraction_kept(batch.images, _truth(batch), ~batch.generated)

    def compute(self, state: Mean) -> dict[str, Any]:
        return {"kept": state.value}

    def table(self) -> Sequence[Row]:
        return [Row("known pixels kept", "kept", fraction)]


@dataclasses.dataclass(frozen=True)
class Diversity(MeanMetric):
    """Standard deviation between samples of one input, over generated pixels; None of a single sample."""

    def mean(self, batch: Batch) -> Mean:
        return Mean() if batch.repeats is None else paired.diversity(batch.repeats, batch.generated)

    def compute(self, state: Mean) -> dict[str, Any]:
        return {"diversity": state.value}

    def table(self) -> Sequence[Row]:
        return [Row("diversity, levels", "diversity", significant)]


class _HintState(NamedTuple):
    error: Mean = Mean()
    images: int = 0


@dataclasses.dataclass(frozen=True)
class HintError(Metric):
    """RMS between the hints of samples and the given hints: whether a sample shows the given sketch.

    The error against the truth says little where many images fit a hint.

    Attributes:
      condition: name of the given image: the hint, and alpha as its last channel.
      hint: computes a hint from an image; image i is given the generator of seed i. None: no hints, and no value.
      key: name of the value in the report.
    """

    condition: str
    hint: Degradation | None
    key: str = "hint_error"

    @property
    def streams(self) -> tuple[str, ...]:
        return ("samples",)

    def init(self) -> _HintState:
        return _HintState()

    def update(self, state: _HintState, batch: Batch) -> _HintState:
        if self.hint is None:
            return state
        numbered = enumerate(batch.images, state.images)
        hints = np.stack([self.hint(image, np.random.default_rng(i)) for i, image in numbered])
        given = levels(batch.fields[self.condition][..., :-1])
        squares = (np.broadcast_to(levels(hints), given.shape) - given) ** 2
        return _HintState(state.error.add(float(squares.sum()), squares.size), state.images + len(hints))

    def compute(self, state: _HintState) -> dict[str, Any]:
        return {self.key: state.error.root}

    def table(self) -> Sequence[Row]:
        return [Row("hint error, levels", self.key, significant)]


def _truth(batch: Batch) -> np.ndarray:
    if batch.truth is None:
        raise ValueError("truth: expected samples of test conditions, with their real images, got none")
    return batch.truth
