"""Grids of discrete models: the model's steps that a sampler visits.

A model of T steps, a `Table` or its continuous limit, has step i (from 0 to T - 1) at time ``(i + 1) / T``. Each step
of a sampler leads to the next visited step, whatever the spacing, and the last to clean data.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Num

from jaxdiff.errors import between, expect
from jaxdiff.process.gaussian import Process
from jaxdiff.process.labels import nearest_step
from jaxdiff.sampling.grids.continuous import falling
from jaxdiff.sampling.protocols import Grid
from jaxdiff.typing import Array, Float


class _Discrete:
    """A grid given by decreasing indices of the model's steps."""

    train_steps: int

    def __call__(self, process: Process, steps: int) -> Float[Array, "steps"]:
        expect(
            steps <= self.train_steps,
            "steps",
            steps,
            f"at most the model's {self.train_steps}",
            "choose fewer",
        )
        return jnp.asarray((self.indices(steps) + 1) / self.train_steps)

    def indices(self, steps: int) -> Num[np.ndarray, "steps"]:
        """The visited steps, from noise to data."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Leading(_Discrete):
    """``i floor(T / N) + offset``: misses the noisiest steps (Lin et al. 2023, table 2; DDIM's linear spacing).

    Attributes:
      train_steps: T, number of steps of the model.
      offset: added to each index, `steps_offset` in diffusers; 1 for Stable Diffusion.
      drop_last: whether the last of N + 1 such steps is left out, as multistep solvers of diffusers do, so that the
        grid ends above the first steps.
    """

    train_steps: int = 1000
    offset: int = 0
    drop_last: bool = False

    def indices(self, steps: int) -> Num[np.ndarray, "steps"]:
        stride = self.train_steps // (steps + self.drop_last)
        found = np.arange(steps + self.drop_last)[::-1][:steps] * stride + self.offset
        expect(
            stride > 0 and int(found[0]) < self.train_steps,
            "offset",
            self.offset,
            f"{steps} steps within the model's {self.train_steps}",
            "lower it, or choose fewer steps",
        )
        return found


@dataclasses.dataclass(frozen=True)
class Trailing(_Discrete):
    """``round(T - i T / N) - 1``: starts at the noisiest step, always (Lin et al. 2023, table 2).

    Attributes:
      train_steps: T, number of steps of the model.
    """

    train_steps: int = 1000

    def indices(self, steps: int) -> Num[np.ndarray, "steps"]:
        positions = np.arange(self.train_steps, 0, -self.train_steps / steps)[:steps]
        return np.round(positions).astype(int) - 1


@dataclasses.dataclass(frozen=True)
class Linspace(_Discrete):
    """N evenly spaced steps from the noisiest to the first (Lin et al. 2023, table 2).

    Attributes:
      train_steps: T, number of steps of the model.
      skip: number of the noisiest steps to leave out. 8 of 1000 is the "iDDPM" column of Karras et al. 2022, table 1.
      drop_last: as for `Leading`.
      rounded: whether to steps of the model. Otherwise they are fractions, as for Euler's and Heun's method in
        diffusers.
    """

    train_steps: int = 1000
    skip: int = 0
    drop_last: bool = False
    rounded: bool = True

    def indices(self, steps: int) -> Num[np.ndarray, "steps"]:
        last = self.train_steps - 1 - self.skip
        expect(
            0 <= self.skip <= self.train_steps - steps,
            "skip",
            self.skip,
            f"a count in [0, {self.train_steps - steps}], to leave {steps} steps",
            "skip fewer",
        )
        if steps == 1:
            return np.array([last])
        found = np.linspace(0, last, steps + self.drop_last)[::-1][:steps]
        return np.round(found).astype(int) if self.rounded else found


@dataclasses.dataclass(frozen=True)
class Strided(_Discrete):
    """Every k-th step from the first on, with the least k that gives N steps: guided-diffusion's "ddimN"."""

    train_steps: int = 1000

    def indices(self, steps: int) -> Num[np.ndarray, "steps"]:
        stride = -(-self.train_steps // steps)
        found = np.arange(0, self.train_steps, stride)[::-1]
        expect(
            len(found) == steps,
            "steps",
            steps,
            f"a count that some stride over {self.train_steps} steps gives",
            f"choose {len(found)}",
        )
        return found


@dataclasses.dataclass(frozen=True)
class Skipping(_Discrete):
    """N of the steps that a consistency model was distilled on, evenly spaced and from the noisiest (Luo et al. 2023).

    Attributes:
      train_steps: T, number of steps of the model.
      original: number of steps of the distillation, ``k T / original - 1``; `original_inference_steps` in diffusers.
    """

    train_steps: int = 1000
    original: int = 50

    def indices(self, steps: int) -> Num[np.ndarray, "steps"]:
        fix = "choose fewer"
        expect(
            steps <= self.original, "steps", steps, f"at most the {self.original} of the distillation", fix
        )
        distilled = np.arange(self.original, 0, -1) * (self.train_steps // self.original) - 1
        return distilled[np.floor(np.linspace(0, self.original, steps, endpoint=False)).astype(int)]


@dataclasses.dataclass(frozen=True)
class Quadratic(_Discrete):
    """``floor(c i^2)`` up to a fraction `last` of the model's steps (Song et al. 2021, "DDIM", appendix D.2).

    Near data, where the paper's steps repeat each other, each is at least one above the one before.
    """

    train_steps: int = 1000
    last: float = 0.8

    def __post_init__(self):
        between(self, "last", 0.0, 1.0, open_low=True, open_high=True)

    def indices(self, steps: int) -> Num[np.ndarray, "steps"]:
        top = self.last * self.train_steps
        expect(steps <= top, "steps", steps, f"at most the {int(top)} below last={self.last}", "choose fewer")
        squares = np.linspace(0, np.sqrt(top), steps + (steps == 1)) ** 2
        return np.maximum(squares.astype(int), np.arange(len(squares)))[::-1][:steps]


@dataclasses.dataclass(frozen=True)
class Respaced(_Discrete):
    """Improved DDPM's spacing: evenly spaced steps within each of several equal sections of the model's steps.

    Nichol & Dhariwal 2021. The first and the last step of every section are visited; a single step is its first.

    Attributes:
      train_steps: T, number of steps of the model.
      sections: number of steps in each section, from data to noise; their sum is the number of sampling steps. Empty
        is one section.
    """

    train_steps: int = 1000
    sections: tuple[int, ...] = ()

    def indices(self, steps: int) -> Num[np.ndarray, "steps"]:
        counts = self.sections or (steps,)
        expect(
            sum(counts) == steps,
            "sections",
            counts,
            f"numbers whose sum is steps={steps}",
            "change one of them",
        )
        size, rest = divmod(self.train_steps, len(counts))
        found, start = [], 0
        for i, count in enumerate(counts):
            length = size + (i < rest)
            expect(
                1 <= count <= length, f"sections[{i}]", count, f"1 to {length} steps", "choose a number there"
            )
            # Summed up and not multiplied, as the spacings of published models were: a half may round either way.
            stride = (length - 1) / max(count - 1, 1)
            positions = np.cumsum([0.0, *[stride] * (count - 1)])
            found.append(start + np.round(positions).astype(int))
            start += length
        return np.concatenate(found)[::-1]


@dataclasses.dataclass(frozen=True)
class Rounded:
    """Another grid with each time rounded to the model's step of the nearest noise level: EDM's `round_sigma`.

    Attributes:
      grid: a grid that only decreases, such as `Karras`.
      train_steps: T, number of steps of the model.
    """

    grid: Grid
    train_steps: int = 1000

    def __call__(self, process: Process, steps: int) -> Float[Array, "times"]:
        times = falling(self.grid, process, steps)
        return nearest_step(process, times, self.train_steps) / self.train_steps
