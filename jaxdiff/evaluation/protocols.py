"""What an evaluation is given, and what it gives back."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from jaxdiff.evaluation.metrics.bits_per_dim import Likelihood

Conditions = Mapping[str, Any]
Examples = Mapping[str, np.ndarray]

Generate = Callable[[Conditions, int, float], np.ndarray]
"""``generate(conditions, seed, guidance)`` -> images uint8 [n, height, width, channels], a pure function.

Conditions have a row for each image; "n" is their number where there is none. Image i has the same noise whatever the
conditions are.
"""


@dataclasses.dataclass(frozen=True)
class EvaluationInputs:
    """A trained model and its data.

    Attributes:
      generate: makes images.
      conditions: the names of the model's conditions that have to be given.
      guidance: the guidance scale of its recipe; 1 is the conditional model itself.
      train, test: examples that it was trained on, and that it has not seen: every field [n, ...], images uint8, and
        conditions as the data make them.
      settings: facts on how samples are made (sampler, steps, checkpoint...), to be kept beside every value.
      noise_losses: "log_snr", "train" and "test", each [m]: the loss on both at m noise levels.
      bits: ``bits(likelihood)``, an entry of `jaxdiff.evaluation.metrics.bits_per_dim.measure` about the test images.
    """

    generate: Generate
    conditions: tuple[str, ...]
    guidance: float
    train: Examples
    test: Examples
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    noise_losses: Mapping[str, Sequence[float]] | None = None
    bits: Callable[[Likelihood], Mapping[str, Any]] | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
      values: plain numbers, strings, lists and dicts.
      table: rows of words: the first names the columns, and the first word of every other row what it is about.
      caption: under which conditions the figures hold, in a few lines.
      picture: all of it at a glance.
    """

    values: Mapping[str, Any]
    table: Sequence[Sequence[str]]
    caption: Sequence[str]
    picture: UInt8[np.ndarray, "height width 3"]


@runtime_checkable
class Evaluation(Protocol):
    """The block of a config that says how a model is judged."""

    def __call__(self, subject: EvaluationInputs) -> Report: ...
