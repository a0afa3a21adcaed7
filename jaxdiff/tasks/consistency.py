"""Consistency of a denoising task with itself and with its data: the standard deviation that its parts assume."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from jaxdiff.codecs.protocol import Codec
from jaxdiff.errors import UserError

SIGMA_DATA = "sigma_data"
"""The field of a part that assumes a standard deviation of the data."""

FEWEST, MOST, SECONDS = 16, 256, 1.0
"""Numbers of training examples that are measured, and the time after which the fewest are enough."""

FAR = 2.0
"""The ratio of deviations that is reported."""

_log = logging.getLogger(__name__)


@runtime_checkable
class Scaled(Protocol):
    """A task whose parts may assume the standard deviation of its data; see `DenoisingTask`."""

    @property
    def denoiser(self) -> Any: ...

    @property
    def objective(self) -> Any: ...

    @property
    def time_sampler(self) -> Any: ...

    @property
    def codec(self) -> Codec: ...

    @property
    def data_field(self) -> str: ...


@runtime_checkable
class Examples(Protocol):
    """Stored examples, read at chosen rows."""

    def __len__(self) -> int: ...

    def rows(self, index: np.ndarray) -> Mapping[str, Any]: ...


def check(task: Scaled) -> None:
    """Raise `UserError` where two parts of a task assume different standard deviations of the data."""
    assumed = _assumed(task)
    first = next(iter(assumed), "")
    for path, value in assumed.items():
        if value != assumed[first]:
            raise UserError(
                f"config.task.{path}={value}: expected {assumed[first]}, as in config.task.{first}, got {value}. "
                "Fix: give both the standard deviation of the data"
            )


def warn_of_scale(task: Scaled, open_examples: Callable[[], Examples]) -> None:
    """Warn if the standard deviation of the training data is far from the one that the task assumes.

    It is measured on evenly spaced examples, for about a second. Data that a codec's network encodes are not measured.

    Args:
      open_examples: opens the training examples; only called where they are measured.
    """
    assumed = _assumed(task)
    if not assumed or task.codec.frozen:
        return
    path, value = next(iter(assumed.items()))
    found = _standard_deviation(task, open_examples())
    if not value / FAR <= found <= value * FAR:
        _log.warning(
            "config.task.%s=%g: expected about the standard deviation of the data, got data with %.3g. "
            "Fix: give %.2g to every %s", path, value, found, found, SIGMA_DATA,
        )  # fmt: skip


def _assumed(task: Scaled) -> dict[str, float]:
    """The field `SIGMA_DATA` of all parts of a task that have it, by path."""
    parts = {
        "denoiser.parameterization": task.denoiser.parameterization,
        "objective": task.objective,
        "time_sampler": task.time_sampler,
    }
    return {path: value for name, part in parts.items() for path, value in _fields(part, name)}


def _fields(part: Any, path: str) -> Iterator[tuple[str, float]]:
    if not dataclasses.is_dataclass(part):
        return
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name == SIGMA_DATA:
            yield f"{path}.{field.name}", value
        else:
            yield from _fields(value, f"{path}.{field.name}")


def _standard_deviation(task: Scaled, examples: Examples) -> float:
    """Of the diffused data, around their mean."""
    count = min(MOST, len(examples))
    sums, numbers, end = np.zeros(2), 0, time.monotonic() + SECONDS
    for done, row in enumerate(np.linspace(0, len(examples) - 1, count).astype(int)):
        if done >= FEWEST and time.monotonic() > end:
            break
        stored = np.asarray(examples.rows(np.array([row]))[task.data_field])
        data = np.asarray(
            task.codec.encode({}, jax.numpy.asarray(stored), jax.random.split(jax.random.key(0), 1))
        )
        sums += data.sum(dtype=np.float64), np.square(data, dtype=np.float64).sum()
        numbers += data.size
    mean, square = sums / numbers
    return math.sqrt(max(0.0, square - mean**2))
