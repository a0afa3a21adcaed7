"""Evaluation of a task without samples: metrics of what its network says about held-out examples."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

import jaxdiff
from jaxdiff.errors import expect
from jaxdiff.evaluation import metric as folds
from jaxdiff.evaluation import streams
from jaxdiff.evaluation.metric import Batch, Metric
from jaxdiff.evaluation.plots import tables
from jaxdiff.evaluation.plots.drawing import framed, table_block
from jaxdiff.evaluation.protocols import PredictionInputs, Report


@dataclasses.dataclass(frozen=True)
class EvaluationOfPredictions:
    """Evaluate predictions on test examples by any metrics of the stream "test".

    The metrics find the predictions among the fields of a batch, under their names.

    Attributes:
      metrics: the metrics, in the order of the table.
      n: number of test examples, the first ones; None for all.
      every: training steps between evaluations; 0 evaluates only when training ends.
    """

    metrics: tuple[Metric, ...]
    n: int | None = None
    every: int = 0

    def __post_init__(self):
        expect(self.n is None or self.n > 0, "n", self.n, "a number of examples > 0, or None", "use None")
        expect(self.every >= 0, "every", self.every, "a number of steps >= 0", "give 0 for only at the end")
        for metric in self.metrics:
            only = tuple(metric.streams) == ("test",)
            expect(only, "metrics", type(metric).__name__, "metrics of the stream 'test' alone",
                   "use Retrieval", str(metric.streams))  # fmt: skip

    def of_predictions(self, inputs: PredictionInputs) -> Report:
        """Score the predictions.

        Raises:
          UserError: there are fewer than `n` test examples.
        """
        there = len(inputs.test)
        n = there if self.n is None else self.n
        expect(n <= there, "n", n, f"at most {there}, the number of test examples", "use fewer")
        states = folds.fold(self.metrics, folds.init(self.metrics), self._batches(inputs, n))
        values = folds.compute(self.metrics, states)
        settings = {**folds.settings(self.metrics), "version": jaxdiff.__version__, **inputs.settings}
        stated = {"test_examples": n, "test": {**values, "conditions": settings}}
        rows = tables.rows_of(self.metrics)
        table = tables.table(rows, {"test": values})
        lines = [f"{n} test examples", *(line for each in self.metrics for line in each.notes(values))]
        figure = np.asarray(framed(table_block(table, lines)))
        return Report(stated, table, lines, figure, tables.scalars(rows, {"test": values}))

    def _batches(self, inputs: PredictionInputs, n: int) -> Iterator[Batch]:
        """The first n test examples with their predictions. Every call has one size, for one compiled program."""
        size = min(inputs.batch_size, n)
        for first in range(0, n, size):
            index = np.minimum(np.arange(first, first + size), n - 1)
            fields = inputs.test.rows(index)
            whole: dict[str, Any] = {**fields, **inputs.predict(fields)}
            kept = {name: values[: n - first] for name, values in whole.items()}
            yield streams.batch_of("test", kept["image"], kept, first)
