"""Noise labels: the number by which a network is told how noisy its image is."""

import dataclasses
from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from jaxdiff.process.gaussian import Process
from jaxdiff.typing import Array, Float

MAX_LOG_SNR = 40.0  # labels stay finite at both ends of time; float32 images cannot tell more apart


@runtime_checkable
class NoiseLabel(Protocol):
    """A label for each time, elementwise on any shape."""

    def __call__(self, process: Process, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]: ...


@dataclasses.dataclass(frozen=True)
class Time:
    """``scale t``: time itself, by default from 0 to 1000."""

    scale: float = 1000.0

    def __call__(self, process: Process, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.scale * t


@dataclasses.dataclass(frozen=True)
class StepIndex:
    """The index 0 to ``steps - 1`` of a discrete model's step (Ho et al. 2020): step i is time ``(i + 1) / steps``."""

    steps: int = 1000

    def __call__(self, process: Process, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.steps * t - 1


@dataclasses.dataclass(frozen=True)
class LogSigma:
    """``scale log(sigma / alpha) + offset``.

    EDM's ``c_noise`` has scale 1/4 (Karras et al. 2022, table 1); the VE column of that table, ``log(sigma / 2)``,
    has scale 1 and offset ``-log 2``.
    """

    scale: float = 0.25
    offset: float = 0.0

    def __call__(self, process: Process, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        log_sigma = -jnp.clip(process.log_snr(t), -MAX_LOG_SNR, MAX_LOG_SNR) / 2
        return self.scale * log_sigma + self.offset
