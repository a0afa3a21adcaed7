"""Bits per dimension of held-out images under a model, by probability flow or variational bound."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from jaxdiff.errors import UserError, between, expect, positive
from jaxdiff.likelihood import variational
from jaxdiff.likelihood.flow import (
    Divergence,
    Hutchinson,
    Integrator,
    RungeKutta4,
    bits_per_dim,
    dequantise,
    log_likelihood,
)
from jaxdiff.likelihood.variational import Decoder, NormalDecoder
from jaxdiff.process.gaussian import Process
from jaxdiff.sampling.grids.continuous import LogSnrUniform
from jaxdiff.sampling.protocols import DenoiseFn, Grid, TimePath
from jaxdiff.typing import Array, Float, Keys


@runtime_checkable
class Likelihood(Protocol):
    """Bits per dimension of images of 256 levels; an upper bound on average over the keys.

    Attributes:
      name: the method and its settings, to state next to the value.
      n: number of images, chosen at random; None for all of them.
      seed: seed of the choice and of all random numbers.
      batch_size: largest number of images per compiled batch.
    """

    @property
    def name(self) -> str: ...

    @property
    def n(self) -> int | None: ...

    @property
    def seed(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    def __call__(
        self,
        denoise: DenoiseFn,
        process: Process,
        images: UInt8[Array, "batch height width channels"],
        keys: Keys,
    ) -> Float[Array, "batch"]: ...


@dataclasses.dataclass(frozen=True)
class OdeLikelihood:
    """Density along the probability flow, at dequantised images (Song et al. 2021, section 4.3).

    The noise at the end of the grid should be about as large as that of dequantisation, whose standard deviation is
    0.0023 (a log-SNR of 12). With much more noise the levels blur; with much less a model of discrete levels sees the
    gaps between them. The cost is ``calls x (1 + probes)`` passes through the network.

    Attributes:
      grid, steps: times of the flow; they should cover the noise levels of training, and no others.
      divergence: estimator of the divergence of the flow.
      integrator: integrator of the flow and its density.
      n, seed, batch_size: see `Likelihood`.
    """

    grid: Grid = LogSnrUniform(-8.5, 12.0)
    steps: int = 64
    divergence: Divergence = Hutchinson()
    integrator: Integrator = RungeKutta4()
    n: int | None = None
    seed: int = 0
    batch_size: int = 128

    def __post_init__(self):
        expect(self.steps >= 2, "steps", self.steps, "at least 2, the ends of the flow", "try 64")
        _check_counts(self)

    @property
    def name(self) -> str:
        return (
            f"probability flow: {self.steps} times of {self.grid}, {self.integrator}, {self.divergence}, "
            "uniform dequantisation"
        )

    def __call__(
        self,
        denoise: DenoiseFn,
        process: Process,
        images: UInt8[Array, "batch height width channels"],
        keys: Keys,
    ) -> Float[Array, "batch"]:
        bin_keys, probe_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        x = dequantise(images, bin_keys)
        times = self.grid(process, self.steps)
        if isinstance(times, TimePath):
            raise UserError(
                f"grid={self.grid}: expected times that only fall, got a grid that returns to noise. "
                "Fix: use a grid such as LogSnrUniform"
            )
        nats = log_likelihood(denoise, process, times, x, probe_keys, self.divergence, self.integrator)
        return bits_per_dim(nats, images.shape[1:])


@dataclasses.dataclass(frozen=True)
class VariationalBound:
    """Variational bound of the model as one of `steps` discrete steps (Ho et al. 2020, equation 5).

    Attributes:
      steps: number of steps T; the times are multiples of ``1 / T``. A model of discrete steps needs its own T.
      fraction: variance of the steps where the model has not learned it: 0 the posterior's, 1 the forward step's.
      decoder: distribution of the levels at the first step.
      n, seed, batch_size: see `Likelihood`.
    """

    steps: int = 1000
    fraction: float = 0.0
    decoder: Decoder = NormalDecoder()
    n: int | None = None
    seed: int = 0
    batch_size: int = 128

    def __post_init__(self):
        expect(self.steps >= 2, "steps", self.steps, "at least 2", "try 1000")
        between(self, "fraction", 0.0, 1.0)
        _check_counts(self)

    @property
    def name(self) -> str:
        return f"variational bound: {self.steps} steps, variance fraction {self.fraction:g}, {self.decoder}"

    def __call__(
        self,
        denoise: DenoiseFn,
        process: Process,
        images: UInt8[Array, "batch height width channels"],
        keys: Keys,
    ) -> Float[Array, "batch"]:
        x_0 = images.astype(jnp.float32) / 127.5 - 1
        return variational.bound(denoise, process, self.steps, x_0, keys, self.fraction, self.decoder).total


def measure(
    likelihood: Likelihood,
    bits: Callable[[Int[np.ndarray, "batch"]], Float[np.ndarray, "batch"]],
    count: int,
) -> dict[str, Any]:
    """Measure images of a set of `count`: mean bits per dimension, its standard error, and settings.

    Args:
      likelihood: the method, for its settings.
      bits: bits per dimension of the images with these indices; every call has the same number of indices.
      count: number of images in the set.

    Raises:
      UserError: the set is smaller than `likelihood.n`, or a value is not finite.
    """
    n = count if likelihood.n is None else likelihood.n
    expect(n <= count, "n", n, f"at most {count}, the number of test images", "use fewer, or None for all")
    chosen = np.random.default_rng(likelihood.seed).permutation(count)[:n]
    size = min(likelihood.batch_size, n)
    parts = []
    for first in range(0, n, size):
        # The last batch is filled with copies, which are cut off again.
        rows = np.minimum(np.arange(first, first + size), n - 1)
        parts.append(bits(chosen[rows])[: n - first])
    values = np.concatenate(parts).astype(np.float64)
    if not np.isfinite(values).all():
        bad = int(chosen[np.flatnonzero(~np.isfinite(values))[0]])
        raise UserError(
            f"evaluation.likelihood={likelihood.name}: expected finite values, got a value that is not finite for "
            f"test image {bad}. Fix: use noise levels of finite log-SNR that the model was trained on"
        )
    return {
        "bits_per_dim": float(values.mean()),
        "standard_error": float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else None,
        "n": n,
        "seed": likelihood.seed,
        "method": likelihood.name,
    }


def _check_counts(likelihood: OdeLikelihood | VariationalBound) -> None:
    positive(likelihood, "n", "batch_size")
    expect(0 <= likelihood.seed < 2**32, "seed", likelihood.seed, "a 32-bit number", "give 0 to 2^32 - 1")
