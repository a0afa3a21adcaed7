"""Noise labels: numbers by which a network receives the noise level of its input."""

import dataclasses
from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from jaxdiff.process.gaussian import Process
from jaxdiff.typing import Array, Float

MAX_LOG_SNR = 40.0  # labels stay finite at both ends of time; float32 data cannot resolve more


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
    """The index 0 to ``steps - 1`` of a discrete model's step (Ho et al. 2020): step i is time ``(i + 1) / steps``.

    Attributes:
      steps: number of steps of the model.
      rounded: whether a time between two steps has the label of the one whose noise level is nearer, as in EDM's
        preconditioning of iDDPM networks (`round_sigma`; Karras et al. 2022, appendix C.3). Otherwise labels are
        fractions there.
    """

    steps: int = 1000
    rounded: bool = False

    def __call__(self, process: Process, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return nearest_step(process, t, self.steps) - 1 if self.rounded else self.steps * t - 1


@dataclasses.dataclass(frozen=True)
class RoundedIndex:
    """`StepIndex` of the step that is nearest in time: diffusers' label of noise levels between the model's steps."""

    steps: int = 1000

    def __call__(self, process: Process, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.round(self.steps * t) - 1


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


def nearest_step(process: Process, t: Float[Array, "*shape"], steps: int) -> Float[Array, "*shape"]:
    """The multiple of ``1 / steps`` nearest to t in the noise level ``sigma / alpha``, times `steps`.

    Times outside of [0, 1] give 0 and `steps`.
    """
    position = jnp.clip(steps * t, 0, steps)
    below, above = jnp.floor(position), jnp.ceil(position)

    def level(time: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.exp(-process.log_snr(time) / 2)

    distance_below = level(position / steps) - level(below / steps)
    distance_above = level(above / steps) - level(position / steps)
    return jnp.where(distance_above < distance_below, above, below)
