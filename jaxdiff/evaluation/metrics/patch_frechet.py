"""Fréchet distance of patches: whether details are distributed like those of real images."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxdiff.evaluation.features.patches import Patches
from jaxdiff.evaluation.formats import significant
from jaxdiff.evaluation.metric import Batch, Metric, Row
from jaxdiff.evaluation.metrics import frechet, moments


class _State(NamedTuple):
    reference: moments.Gaussian | None = None
    samples: moments.Gaussian | None = None


@dataclasses.dataclass(frozen=True)
class PatchFrechet(Metric):
    """Fréchet distance between the patches of samples and those of test images, from running moments.

    Attributes:
      features: which patches.
      generated: use only patches with a pixel that the model generates, see `Batch.generated`.
      key: name of the value in the report.
    """

    features: Patches = Patches()
    generated: bool = False
    key: str = "frechet"

    @property
    def streams(self) -> tuple[str, ...]:
        return ("test", "samples")

    def init(self) -> _State:
        return _State()

    def update(self, state: _State, batch: Batch) -> _State:
        where = batch.generated if self.generated else None
        if where is not None and not where.any():
            return state
        slot = "samples" if batch.stream == "samples" else "reference"
        found = moments.union(getattr(state, slot), self.features.fit(batch.images, where))
        return state._replace(**{slot: found})

    def compute(self, state: _State) -> dict[str, Any]:
        return {self.key: frechet.distance(state.samples, state.reference)}

    def table(self) -> Sequence[Row]:
        what = "generated patches" if self.generated else "patches"
        return [Row(f"Frechet distance of {what}", self.key, significant)]

    def settings(self) -> dict[str, Any]:
        return {"features": self.features.name}
