"""Metrics of scenes: whether samples show the requested scenes, and how diverse the samples of one scene are."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Batch, Metric, Row
from jaxdiff.evaluation.metrics.spread import Scatters, add
from jaxdiff.evaluation.protocols import FeatureExtractor
from jaxdiff.evaluation.scenes.classifier import (
    ATTRIBUTES,
    FIELDS,
    FittedSceneClassifier,
    SceneClassifier,
    Scenes,
    in_reading_order,
)
from jaxdiff.evaluation.scenes.features import HalfSize

LEVEL = 0.95
"""Confidence level of the interval."""


class _State(NamedTuple):
    images: tuple[np.ndarray, ...] = ()  # of training, until the classifier is fitted
    scenes: tuple[Scenes, ...] = ()
    seen: int = 0
    classifier: FittedSceneClassifier | None = None
    correct: tuple[dict[str, Bool[np.ndarray, "b"]], ...] = ()
    counts: tuple[Integer[np.ndarray, "b"], ...] = ()


@dataclasses.dataclass(frozen=True)
class SceneAccuracy(Metric):
    """Fraction of samples that show the requested scene: in all, by attribute, and by number of digits.

    The training images that the classifier learns from are held in memory while it is fitted.

    Attributes:
      classifier: reads images; fitted to training scenes.
    """

    classifier: SceneClassifier = SceneClassifier()

    needs_all = True

    @property
    def streams(self) -> tuple[str, ...]:
        return ("train", "samples")

    def init(self) -> _State:
        return _State()

    def update(self, state: _State, batch: Batch) -> _State:
        if batch.stream == "samples":
            assert state.classifier is not None, "samples follow the training scenes"
            correct, counts = state.classifier(batch.images, batch.fields), batch.fields["count"]
            return state._replace(correct=(*state.correct, correct), counts=(*state.counts, counts))
        if self.classifier.scenes is not None and state.seen >= self.classifier.scenes:
            return state
        scenes = {name: batch.fields[name] for name in FIELDS if name in batch.fields}
        return state._replace(
            images=(*state.images, batch.images),
            scenes=(*state.scenes, scenes),
            seen=state.seen + len(batch.images),
        )

    def finish(self, state: _State, stream: str) -> _State:
        del stream
        scenes = {name: np.concatenate([part[name] for part in state.scenes]) for name in state.scenes[0]}
        return _State(classifier=self.classifier.fit(np.concatenate(state.images), scenes))

    def compute(self, state: _State) -> dict[str, Any]:
        return fractions(self.correct(state), np.concatenate(state.counts))

    def correct(self, state: _State) -> dict[str, Bool[np.ndarray, "n"]]:
        """Which samples are correct, in each of `ATTRIBUTES` and in all of them."""
        return {name: np.concatenate([part[name] for part in state.correct]) for name in state.correct[0]}

    def table(self) -> Sequence[Row]:
        rows = [Row("all attributes correct", "correct.all", decimals)]
        for name, label in (("low", "at least"), ("high", "at most")):
            rows.append(Row(f"  {label} ({LEVEL:.0%})", f"interval.{name}", decimals))
        rows += [Row(f"{name} correct", f"correct.{name}", decimals) for name in ATTRIBUTES]
        for count in (1, 2, 3):
            label = f"all correct, {count} digit{'s' * (count > 1)}"
            rows.append(Row(label, f"correct_by_count.{count}", decimals))
        return rows

    def settings(self) -> dict[str, Any]:
        return {"classifier": self.classifier.name}


class _SpreadState(NamedTuple):
    test: Scatters = {}  # noqa: RUF012  (never changed in place)
    samples: Scatters = {}  # noqa: RUF012


@dataclasses.dataclass(frozen=True)
class SceneSpread(Metric):
    """Mean variance of samples of the same scene, over that of the test images; None where no scene occurs twice.

    Attributes:
      features: the feature space.
    """

    features: FeatureExtractor = HalfSize()

    needs_all = True

    @property
    def streams(self) -> tuple[str, ...]:
        return ("test", "samples")

    def init(self) -> _SpreadState:
        return _SpreadState()

    def update(self, state: _SpreadState, batch: Batch) -> _SpreadState:
        scatters = getattr(state, batch.stream)
        found = add(scatters, scene_keys(batch.fields), batch.features(self.features))
        return state._replace(**{batch.stream: found})

    def compute(self, state: _SpreadState) -> dict[str, Any]:
        samples, test = (_mean_variance(scatters) for scatters in (state.samples, state.test))
        return {"spread": samples / test if test > 0 else None}

    def table(self) -> Sequence[Row]:
        return [Row("spread of equal scenes / real", "spread", decimals)]

    def settings(self) -> dict[str, Any]:
        return {"features": self.features.name}


def fractions(correct: dict[str, Bool[np.ndarray, "n"]], counts: Integer[np.ndarray, "n"]) -> dict[str, Any]:
    """Fractions of correct images: by attribute, with an interval, and by the requested number of digits."""
    low, high = wilson(int(correct["all"].sum()), len(counts))
    return {
        "correct": {name: float(correct[name].mean()) for name in ("all", *ATTRIBUTES)},
        "interval": {"low": low, "high": high, "level": LEVEL, "method": "Wilson"},
        "correct_by_count": {
            str(count): float(correct["all"][counts == count].mean()) for count in np.unique(counts)
        },
    }


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's confidence interval of a probability after `n` trials (Wilson 1927). It never leaves [0, 1]."""
    from scipy.special import ndtri

    z = float(ndtri((1 + level) / 2))
    fraction = successes / n
    centre = fraction + z**2 / (2 * n)
    reach = z * math.sqrt(fraction * (1 - fraction) / n + z**2 / (4 * n**2))
    low, high = ((centre + sign * reach) / (1 + z**2 / n) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)  # against rounding


def scene_keys(scenes: Scenes) -> list[tuple[int, ...]]:
    """A key for each scene, equal for the same scene in other words: "a above b", "b below a"."""
    seen = in_reading_order(scenes)
    rows = np.column_stack([seen.count, seen.stacked, seen.digits, seen.colours])
    return [tuple(row) for row in rows.tolist()]


def _mean_variance(scatters: Scatters) -> float:
    variances = [scatter.variance for _, scatter in sorted(scatters.items()) if scatter.n > 1]
    return float(np.mean(variances)) if variances else 0.0
