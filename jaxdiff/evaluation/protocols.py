"""Protocols of evaluation: what an evaluation receives, the parts it is made of, and the report it returns."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer, UInt8

from jaxdiff.evaluation.metrics.bits_per_dim import Likelihood

LABEL_WIDTH, VALUE_WIDTH = 40, 14
"""Widths of the columns of a table in a terminal."""

Fields = Mapping[str, np.ndarray]
"""Fields of a batch of examples, [n, ...] each; ``image`` is uint8 [n, height, width, channels]."""

Generate = Callable[[Mapping[str, Any], int, float, int], np.ndarray]
"""``generate(conditions, seed, guidance, first)`` -> uint8 images [n, height, width, channels], a pure function.

`conditions` have one row per image; a model without conditions is given their number, ``{"n": n}``. Row i is image
number ``first + i`` of the seed: its noise depends on the seed and this number alone.
"""


@runtime_checkable
class Examples(Protocol):
    """Real examples of a data set, read in batches or at chosen rows. Nothing is read before it is needed."""

    def __len__(self) -> int: ...

    def rows(self, index: Integer[np.ndarray, "n"]) -> Fields:
        """The examples at these positions, as one batch."""
        ...

    def batches(self, batch_size: int) -> Iterator[Fields]:
        """Every example once, in order; the last batch may be smaller."""
        ...


@dataclasses.dataclass(frozen=True)
class EvaluationInputs:
    """A trained model and its data.

    Attributes:
      generate: samples images, batch by batch.
      conditions: names of the conditions that the model requires.
      guidance: guidance scale of the sampling recipe; 1 is the conditional model itself.
      train: the training examples, with conditions as the data pipeline computes them.
      test: held-out examples, likewise.
      label: name of the condition that is the class label, int [n]; None if the model has none.
      batch_size: number of images that are generated, or read, at once.
      settings: facts about sampling (sampler, steps, data, ...), stored next to every value.
      noise_losses: "log_snr", "train" and "test", each [m]: the losses on both splits at m noise levels.
      bits: ``bits(likelihood)``: `jaxdiff.evaluation.metrics.bits_per_dim.measure` on the test images.
    """

    generate: Generate
    conditions: tuple[str, ...]
    guidance: float
    train: Examples
    test: Examples
    label: str | None = None
    batch_size: int = 256
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    noise_losses: Mapping[str, Sequence[float]] | None = None
    bits: Callable[[Likelihood], Mapping[str, Any]] | None = None


@dataclasses.dataclass(frozen=True)
class PredictionInputs:
    """A trained model that makes no samples, and its held-out data.

    Attributes:
      predict: from the fields of a batch to predictions by name, [n, ...] each.
      test: the held-out examples, with conditions as the data pipeline computes them.
      batch_size: number of examples that are read at once.
      settings: facts about the data, stored next to every value.
    """

    predict: Callable[[Fields], Fields]
    test: Examples
    batch_size: int = 256
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of an evaluation.

    Attributes:
      values: numbers, strings, lists and dicts, for JSON.
      table: rows of strings: the first row names the columns, the first string of every other row its quantity.
      caption: the settings under which the values hold, as a few lines.
      figure: samples, table and curves as one image.
      scalars: the headline numbers by name, for the logs of a training run.
    """

    values: Mapping[str, Any]
    table: Sequence[Sequence[str]]
    caption: Sequence[str]
    figure: UInt8[np.ndarray, "height width 3"]
    scalars: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        """Caption and table for a terminal."""
        return "\n".join([*self.caption, "", *map(line, self.table)])


def line(row: Sequence[str]) -> str:
    """A row of a table in a terminal."""
    return (row[0].ljust(LABEL_WIDTH) + "".join(value.rjust(VALUE_WIDTH) for value in row[1:])).rstrip()


@runtime_checkable
class Evaluator(Protocol):
    """A config block that evaluates a trained model.

    Attributes:
      every: training steps between evaluations; 0 evaluates only when training ends.
    """

    @property
    def every(self) -> int: ...

    def __call__(self, inputs: EvaluationInputs) -> Report: ...


@runtime_checkable
class PredictionEvaluator(Protocol):
    """A config block that evaluates a trained model without samples, a `jaxdiff.tasks.protocols.Predictive` task.

    Attributes:
      every: training steps between evaluations; 0 evaluates only when training ends.
    """

    @property
    def every(self) -> int: ...

    def of_predictions(self, inputs: PredictionInputs) -> Report: ...


@runtime_checkable
class FeatureExtractor(Protocol):
    """A map from uint8 images [n, height, width, channels] to feature vectors [n, d], with a name to report.

    Networks also state ``dim``, ``profile``, the name of their preprocessing, and ``hash``, that of their weights. They
    are recorded next to every value (`features.description.describe`), and figures of different ones are not compared.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, images: np.ndarray) -> np.ndarray: ...


@runtime_checkable
class TextFeatureExtractor(Protocol):
    """A map from a field of texts or token ids [n, ...] to feature vectors [n, d], with a name to report."""

    @property
    def name(self) -> str: ...

    def __call__(self, texts: np.ndarray) -> np.ndarray: ...


@runtime_checkable
class ImageDistance(Protocol):
    """A distance between two images of one shape, such as LPIPS: uint8 images, twice, to distances [n]."""

    @property
    def name(self) -> str: ...

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray: ...


@runtime_checkable
class SharedExtractor(FeatureExtractor, Protocol):
    """A feature extractor that is one of several outputs of a network, which are computed together."""

    def shared(self, images: np.ndarray) -> Mapping[Any, np.ndarray]:
        """The vectors [n, d] of all outputs, by the extractors that they belong to; itself among them."""
        ...


@runtime_checkable
class Classifier(Protocol):
    """A fitted classifier: the class of each image, int [n]."""

    def predict(self, images: np.ndarray) -> np.ndarray: ...


@runtime_checkable
class TrainableClassifier(Protocol):
    """A classifier that can be fitted to real training images, with a name to report."""

    @property
    def name(self) -> str: ...

    def fit(self, images: np.ndarray, labels: np.ndarray) -> Classifier: ...


@runtime_checkable
class Guided(Protocol):
    """An evaluation that names guidance scales of its own, in addition to 1 and the recipe's."""

    @property
    def guidances(self) -> tuple[float, ...]: ...
