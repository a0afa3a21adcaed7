"""Colour shift: whether samples are brighter, darker or flatter than real images, channel by channel.

Strong guidance raises contrast and saturation, and networks that predict the noise may shift colours of large images.
Sets are compared, not pairs; for pairs see `restoration.MeanColourError`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.errors import one_of
from jaxdiff.evaluation.formats import decimals
from jaxdiff.evaluation.metric import Batch, Metric, Row
from jaxdiff.evaluation.metrics.moments import Gaussian, fit, union


class _State(NamedTuple):
    reference: Gaussian | None = None
    samples: Gaussian | None = None


@dataclasses.dataclass(frozen=True)
class ColourShift(Metric):
    """Mean colour of the samples minus that of a reference, and the ratio of the deviations of all pixels.

    Attributes:
      reference: "test" or "train".
    """

    reference: str = "test"

    def __post_init__(self):
        one_of(self, "reference", ("test", "train"))

    @property
    def streams(self) -> tuple[str, ...]:
        return (self.reference, "samples")

    def init(self) -> _State:
        return _State()

    def update(self, state: _State, batch: Batch) -> _State:
        slot = "samples" if batch.stream == "samples" else "reference"
        pixels = fit(batch.images.reshape(-1, batch.images.shape[-1]).astype(np.float64))
        return state._replace(**{slot: union(getattr(state, slot), pixels)})

    def compute(self, state: _State) -> dict[str, Any]:
        if state.reference is None or state.samples is None:
            return {"colour_shift": {"largest": None, "contrast": None, "by_channel": []}}
        shift = state.samples.mean - state.reference.mean
        spread, real = (
            float(np.sqrt(np.trace(found.covariance))) for found in (state.samples, state.reference)
        )
        values = {
            "largest": float(np.abs(shift).max()),
            "contrast": spread / real if real else None,
            "by_channel": [float(value) for value in shift],
        }
        return {"colour_shift": values}

    def table(self) -> Sequence[Row]:
        return [
            Row("largest colour shift, levels", "colour_shift.largest", decimals),
            Row("contrast / real", "colour_shift.contrast", decimals),
        ]
