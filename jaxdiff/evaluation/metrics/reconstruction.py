"""Metrics of an autoencoder: how near its reconstructions are, and the statistics of its latents."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from jaxdiff.evaluation.baselines import levels
from jaxdiff.evaluation.formats import decimals, significant
from jaxdiff.evaluation.metric import Batch, Metric, Row
from jaxdiff.evaluation.metrics import paired
from jaxdiff.evaluation.metrics.running import Mean, MeanMetric


@dataclasses.dataclass(frozen=True)
class ReconstructionPsnr(MeanMetric):
    """PSNR of reconstructions, rounded to bytes, of all test images together. See `paired.psnr`.

    Attributes:
      reconstruction: the field with images in [-1, 1].
    """

    reconstruction: str = "reconstruction"

    @property
    def streams(self) -> tuple[str, ...]:
        return ("test",)

    def mean(self, batch: Batch) -> Mean:
        made = np.clip(np.rint(levels(batch.fields[self.reconstruction])), 0, 255)
        return paired.squared_error(made.astype(np.uint8), batch.images)

    def compute(self, state: Mean) -> dict[str, Any]:
        return {"reconstruction_psnr": paired.psnr(state)}

    def table(self) -> Sequence[Row]:
        return [Row("PSNR of reconstructions, dB", "reconstruction_psnr", significant)]


class _Sums(NamedTuple):
    """Numbers of latents so far, and by channel their sum and that of their squares."""

    count: int = 0
    total: Float64[np.ndarray, "channels"] = np.zeros(())
    squares: Float64[np.ndarray, "channels"] = np.zeros(())


@dataclasses.dataclass(frozen=True)
class LatentStatistics(Metric):
    """Mean and standard deviation of each channel of the latents, as `jaxdiff.codecs.latent.Latent` needs them.

    Attributes:
      latent: the field with latents [n, rows, columns, channels].
    """

    latent: str = "latent"

    @property
    def streams(self) -> tuple[str, ...]:
        return ("test",)

    def init(self) -> _Sums:
        return _Sums()

    def update(self, state: _Sums, batch: Batch) -> _Sums:
        latents = (
            batch.fields[self.latent].astype(np.float64).reshape(-1, batch.fields[self.latent].shape[-1])
        )
        sums = latents.sum(axis=0), np.square(latents).sum(axis=0)
        return _Sums(state.count + len(latents), state.total + sums[0], state.squares + sums[1])

    def compute(self, state: _Sums) -> dict[str, Any]:
        mean = state.total / state.count
        std = np.sqrt(np.maximum(state.squares / state.count - np.square(mean), 0.0))
        whole = float(np.sqrt(np.mean(np.square(std) + np.square(mean))))
        return {"latents": {"mean": mean.tolist(), "std": std.tolist(), "rms": whole}}

    def table(self) -> Sequence[Row]:
        return [Row("RMS of latents", "latents.rms", decimals)]
