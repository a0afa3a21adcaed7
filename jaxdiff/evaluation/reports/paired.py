"""Common parts of evaluations whose samples must agree with a given image: requests, streams of samples, examples."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer

import jaxdiff
from jaxdiff.errors import expect, positive
from jaxdiff.evaluation import metric as folds
from jaxdiff.evaluation import streams
from jaxdiff.evaluation.examples import Subset
from jaxdiff.evaluation.features.patches import Patches
from jaxdiff.evaluation.metric import Batch, Metric, States
from jaxdiff.evaluation.protocols import EvaluationInputs, Fields
from jaxdiff.evaluation.requests import conditions_of
from jaxdiff.evaluation.settings import check_sampling

SHOWN_SAMPLES = 3
"""Number of samples of one input in the figure."""


@runtime_checkable
class PairedEvaluation(Protocol):
    """The fields that these evaluations share."""

    @property
    def condition(self) -> str: ...

    @property
    def n(self) -> int: ...

    @property
    def samples_per_input(self) -> int: ...

    @property
    def guidances(self) -> tuple[float, ...]: ...

    @property
    def seed(self) -> int: ...

    @property
    def features(self) -> Patches: ...

    @property
    def every(self) -> int: ...


def check(evaluation: PairedEvaluation) -> None:
    """Raise a `UserError` about a shared field that is out of range."""
    check_sampling(evaluation.seed, evaluation.guidances)
    expect(evaluation.n > 1, "n", evaluation.n, "at least 2 test images", "use 100 or more")
    positive(evaluation, "samples_per_input")
    expect(
        evaluation.every >= 0, "every", evaluation.every, "a number of steps >= 0", "give 0 for the end only"
    )


def check_condition(inputs: EvaluationInputs, condition: str) -> None:
    """Raise a `UserError` unless the model has this condition."""
    fix = "name one of these"
    expect(condition in inputs.conditions, "condition", condition, f"one of {inputs.conditions}", fix)


def evenly(groups: Integer[np.ndarray, "count"], n: int) -> Integer[np.ndarray, "chosen"]:
    """At most n rows in order, evenly spread over all, and over each group in proportion to its size."""
    order = np.argsort(groups, kind="stable")
    chosen = np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int)
    return np.sort(order[chosen])


def guidances(evaluation: PairedEvaluation, inputs: EvaluationInputs) -> list[float]:
    """The guidance scales to sample at: the recipe's, and those of the evaluation."""
    return sorted({float(inputs.guidance), *map(float, evaluation.guidances)})


def sample_batches(
    inputs: EvaluationInputs,
    test: Subset,
    guidance: float,
    seed: int,
    repeats: int = 1,
    sources: Subset | None = None,
) -> Iterator[Batch]:
    """Samples under the conditions of test examples, in batches.

    Args:
      test: the test examples: their images are the truth.
      seed: seed of the noise; sample i of an input uses ``seed + i``.
      repeats: number of samples of each input.
      sources: examples whose conditions are used instead of those of `test`, row by row.
    """

    def request(rows: np.ndarray) -> tuple[Mapping[str, Any], Fields]:
        fields = test.rows(rows)
        return conditions_of(inputs, fields if sources is None else sources.rows(rows)), fields

    shape = test.rows(np.arange(1))["image"].shape[1:]
    sets = [streams.generated(inputs, request, len(test), seed + i, guidance, shape) for i in range(repeats)]
    first = 0
    for parts in zip(*sets, strict=True):
        images, fields = parts[0]
        yield streams.batch_of(
            "samples",
            images,
            fields,
            first,
            truth=fields["image"],
            repeats=np.stack([part[0] for part in parts]),
        )
        first += len(images)


def baseline_batches(
    test: Subset, baseline: Callable[[Fields], np.ndarray], batch_size: int
) -> Iterator[Batch]:
    """The images that a baseline computes from the fields of test examples, in place of samples."""
    first = 0
    for fields in test.batches(batch_size):
        images = baseline(fields)
        yield streams.batch_of("samples", images, fields, first, truth=fields["image"])
        first += len(images)


def real_batches(examples: Subset, stream: folds.Stream, batch_size: int) -> Iterator[Batch]:
    """Real images, as reference or in place of samples; each is its own truth."""
    first = 0
    for fields in examples.batches(batch_size):
        yield streams.batch_of(stream, fields["image"], fields, first, truth=fields["image"])
        first += len(fields["image"])


def reference(metrics: Sequence[Metric], batches: Iterable[Batch]) -> States:
    """The states of metrics after the test images, the start of all columns."""
    return folds.finish(metrics, folds.fold(metrics, folds.init(metrics), batches), "test")


class Shown:
    """Collects images at chosen positions of streams of samples, as columns of a figure.

    Attributes:
      positions: the chosen positions, in the order in which they are shown.
      columns: by title, uint8 [m, height, width, channels].
    """

    def __init__(self, positions: Integer[np.ndarray, "m"]):
        self.positions = positions
        self.columns: dict[str, np.ndarray] = {}

    def watch(self, title: str, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass batches on, and keep their chosen images under `title`, the first `SHOWN_SAMPLES` of each input."""
        for batch in batches:
            sets = batch.images[None] if batch.repeats is None else batch.repeats[:SHOWN_SAMPLES]
            for i, images in enumerate(sets):
                self._keep(title if len(sets) == 1 else f"{title} #{i + 1}", batch.positions, images)
            yield batch

    def _keep(self, title: str, positions: np.ndarray, images: np.ndarray) -> None:
        column = self.columns.setdefault(title, np.zeros((len(self.positions), *images.shape[1:]), np.uint8))
        for row, position in enumerate(self.positions):
            found = np.flatnonzero(positions == position)
            if found.size:
                column[row] = images[found[0]]


def ratio(baseline: float | None, model: float | None) -> float | None:
    """How many times smaller the model's distance is than the baseline's; None without such a number."""
    return baseline / model if baseline is not None and model else None


def settings(evaluation: PairedEvaluation, inputs: EvaluationInputs, n: int) -> dict[str, Any]:
    """The settings under which values hold."""
    return {
        "n": n,
        "seed": evaluation.seed,
        "samples_per_input": evaluation.samples_per_input,
        "features": evaluation.features.name,
        "condition": evaluation.condition,
        "test_images": len(inputs.test),
        "train_images": len(inputs.train),
        "version": jaxdiff.__version__,
        **inputs.settings,
    }
