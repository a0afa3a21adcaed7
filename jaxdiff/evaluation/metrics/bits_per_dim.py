"""How many bits a model needs for each value of an image that it has never seen: two ways to measure it."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from jaxdiff.errors import UserError, require
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
      name: the method and its settings, to be stated beside the figure.
      n: how many images are measured, chosen at random; None for all of them.
      seed: of that choice, and of all that is drawn.
      batch_size: the most images that are measured at once.
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
    """The density along the probability flow, at dequantised images (Song et al. 2021, section 4.3).

    The noise that is left at the grid's end should be about as large as that of dequantisation, whose standard
    deviation is 0.0023 (a log-SNR of 12): with much more the levels blur, with much less a model of discrete
    levels sees the gaps between them. The cost is ``calls x (1 + probes)`` passes through the network.

    Attributes:
      grid, steps: the times of the flow; they should reach as far as the model was trained, and no further.
      divergence, integrator: how the density is followed.
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
        require(self.steps >= 2, "steps", self.steps, "a flow has two ends", "use 2 or more, try 64")
        _require_counts(self)

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
                f"grid={self.grid}: a flow never goes back. Fix: use one that falls only, such as LogSnrUniform"
            )
        nats = log_likelihood(denoise, process, times, x, probe_keys, self.divergence, self.integrator)
        return bits_per_dim(nats, images.shape[1:])


@dataclasses.dataclass(frozen=True)
class VariationalBound:
    """The variational bound of the model taken as one of `steps` steps (Ho et al. 2020, equation 5).

    Attributes:
      steps: T; the times are multiples of ``1 / T``, which for a model of discrete steps must be its own.
      fraction: the variance of the steps where the model has not learned it: 0 the posterior's, 1 the forward step's.
      decoder: the law of the levels at the first step.
      n, seed, batch_size: see `Likelihood`.
    """

    steps: int = 1000
    fraction: float = 0.0
    decoder: Decoder = NormalDecoder()
    n: int | None = None
    seed: int = 0
    batch_size: int = 128

    def __post_init__(self):
        require(self.steps >= 2, "steps", self.steps, "the first step takes its variance from the second",
                "use 2 or more, try 1000")  # fmt: skip
        require(
            0 <= self.fraction <= 1, "fraction", self.fraction, "it lies between two bounds", "use 0.0 or 1.0"
        )
        _require_counts(self)

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
    """Measure images of a set of `count`: the report's entry, plain numbers and strings.

    Args:
      likelihood: the method, for its settings.
      bits: bits per dimension of the images with these indices; always called with equally many.
      count: the number of images that there are.

    Raises:
      UserError: there are fewer images than asked for, or a figure is not finite.
    """
    n = count if likelihood.n is None else likelihood.n
    require(n <= count, "n", n, f"there are {count} test images", "ask for no more, or None for all")
    chosen = np.random.default_rng(likelihood.seed).permutation(count)[:n]
    size = min(likelihood.batch_size, n)
    parts = []
    for first in range(0, n, size):
        rows = np.minimum(
            np.arange(first, first + size), n - 1
        )  # filled up with copies, which are cut off again
        parts.append(bits(chosen[rows])[: n - first])
    values = np.concatenate(parts).astype(np.float64)
    if not np.isfinite(values).all():
        bad = int(chosen[np.flatnonzero(~np.isfinite(values))[0]])
        raise UserError(
            f"evaluation.likelihood={likelihood.name}: not finite for test image {bad}. Fix: keep to noise levels "
            "of finite log-SNR that the model was trained on"
        )
    return {
        "bits_per_dim": float(values.mean()),
        "standard_error": float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else None,
        "n": n,
        "seed": likelihood.seed,
        "method": likelihood.name,
    }


def _require_counts(likelihood: OdeLikelihood | VariationalBound) -> None:
    require(
        likelihood.n is None or likelihood.n >= 1,
        "n",
        likelihood.n,
        "there would be no image",
        "give 1 or more, or None",
    )
    require(
        likelihood.batch_size >= 1, "batch_size", likelihood.batch_size, "it is a count", "give 1 or more"
    )
    require(
        0 <= likelihood.seed < 2**32, "seed", likelihood.seed, "32 bits are used", "choose from 0 to 2^32 - 1"
    )
