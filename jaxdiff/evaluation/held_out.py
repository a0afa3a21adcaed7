"""Held-out loss in training: the error on test data by band of noise, which needs no samples."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxdiff.errors import positive
from jaxdiff.evaluation.denoising_loss import denoising_loss
from jaxdiff.evaluation.protocols import Examples
from jaxdiff.process.gaussian import Process
from jaxdiff.process.weighting import MAX_LOG_SNR
from jaxdiff.tasks.protocols import Sampleable
from jaxdiff.typing import Array, Float, Params, Times

NAME = "held_out_loss"
"""The logged mean; bands are ``held_out_loss/0.00-0.25``."""


@dataclasses.dataclass(frozen=True)
class Bands:
    """Equal bands of diffusion time, each covered evenly by the times of the examples, and the errors of v.

    Attributes:
      bands: number of bands.
      examples: number of examples.
    """

    bands: int
    examples: int

    def times(self, process: Process, index: Float[Array, "batch"]) -> Float[Array, "levels batch"]:
        within = (jnp.minimum(index, self.examples - 1) + 0.5) / self.examples
        return (jnp.arange(self.bands, dtype=jnp.float32)[:, None] + within[None]) / self.bands

    def weights(self, process: Process, t: Times) -> Times:
        """SNR + 1: the error of v in place of that of the clean data (Salimans & Ho 2022, section 4)."""
        return 1 + jnp.exp(jnp.minimum(process.log_snr(t), MAX_LOG_SNR))


@dataclasses.dataclass(frozen=True)
class HeldOutLoss:
    """Mean squared error of v on test data, overall and by band of noise, with the averaged parameters.

    Every evaluation has the same examples, times and noise, so that its changes are those of the model. Losses of
    single noise levels differ by orders of magnitude; those of v are of one size at all of them. Conditions are those
    of the examples, and nothing is dropped or augmented.

    Attributes:
      every: training steps between evaluations.
      n: number of test examples, evenly spread over all.
      bands: number of bands, equal parts of the diffusion time from 0, data, to 1, noise.
    """

    every: int = 500
    n: int = 256
    bands: int = 4

    def __post_init__(self):
        positive(self, "every", "n", "bands")

    def __call__(
        self,
        task: Sampleable,
        params: Params,
        examples: Examples,
        mesh: jax.sharding.Mesh,
        frozen: Mapping[str, Params],
    ) -> dict[str, float]:
        """The losses to log, by name.

        Args:
          params: all parameters of the denoiser.
          frozen: parameters of frozen networks, by name.
        """
        levels = Bands(self.bands, min(self.n, len(examples)))
        found = denoising_loss(task, params, examples, mesh, frozen, levels, self.n)
        names = (f"{NAME}/{i / self.bands:.2f}-{(i + 1) / self.bands:.2f}" for i in range(self.bands))
        return {NAME: sum(found) / self.bands, **dict(zip(names, found, strict=True))}
