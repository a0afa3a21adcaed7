"""Reference statistics of a data set: features of all examples as mean and covariance, by all processes together."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import jaxdiff
from jaxdiff.errors import UserError, expect
from jaxdiff.evaluation.features.description import describe
from jaxdiff.evaluation.metrics import moments
from jaxdiff.evaluation.metrics.frechet import STREAMS, Frechet
from jaxdiff.evaluation.metrics.moments import Gaussian
from jaxdiff.evaluation.protocols import Examples, FeatureExtractor
from jaxdiff.evaluation.settings import QUANTIZATION


def measure(examples: Examples, features: FeatureExtractor, batch_size: int) -> Gaussian:
    """Mean and covariance of the features of all examples. Each process reads its own part of them.

    Args:
      examples: with the field ``image``.
      batch_size: number of examples that a process reads at once.
    """
    own = np.arange(len(examples))[jax.process_index() :: jax.process_count()]
    found = None
    for first in range(0, len(own), batch_size):
        fields = examples.rows(own[first : first + batch_size])
        found = moments.union(found, moments.fit(features(fields["image"])))
    whole = moments.over_processes(found)
    if whole is None:
        raise UserError("data=: expected one example or more, got none. Fix: give other data")
    return whole


def made(features: FeatureExtractor, data: Any) -> dict[str, Any]:
    """How statistics were made, as JSON values.

    Args:
      data: what the examples are, such as ``Pipeline.fingerprint()``.
    """
    return {**describe(features), "data": data, "quantization": QUANTIZATION, "version": jaxdiff.__version__}


def check(evaluation: Any) -> None:
    """Read the files that Fréchet distances of an evaluation name, so that errors come before the work.

    Raises:
      UserError: see `Frechet.stored`.
    """
    for metric in getattr(getattr(evaluation, "evaluation", evaluation), "metrics", ()):
        if isinstance(metric, Frechet) and metric.reference not in STREAMS:
            metric.stored()


def with_reference(evaluation: Any, reference: str) -> Any:
    """The evaluation with another reference for its Fréchet distances.

    Args:
      reference: see `Frechet`.

    Raises:
      UserError: the evaluation has none.
    """
    fields = _fields(evaluation)
    if "reference" in fields:
        return dataclasses.replace(evaluation, reference=reference)
    metrics: Sequence[Any] = getattr(evaluation, "metrics", ())
    fix, got = "leave --reference out, or add metrics.frechet:Frechet", type(evaluation).__name__
    some = "metrics" in fields and any(isinstance(metric, Frechet) for metric in metrics)
    expect(some, "--reference", reference, "an evaluation with a Frechet distance", fix, got)
    replaced = (
        dataclasses.replace(metric, reference=reference) if isinstance(metric, Frechet) else metric
        for metric in metrics
    )
    return dataclasses.replace(evaluation, metrics=tuple(replaced))


def _fields(part: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(part)} if dataclasses.is_dataclass(part) else set()
