"""Which of a discrete model's steps a sampler visits.

A model of T steps, a `Table` or its continuous limit, has step i (from 0 to T - 1) at time ``(i + 1) / T``. Each step
of a sampler leads to the next visited step, whatever the spacing, and the last to clean data.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxdiff.errors import require
from jaxdiff.process.gaussian import Process
from jaxdiff.typing import Array, Float


class _Discrete:
    """Falling indices of steps as times."""

    train_steps: int

    def __call__(self, process: Process, steps: int) -> Float[Array, "steps"]:
        require(
            steps <= self.train_steps, "steps", steps,
            f"the model has only {self.train_steps} to visit", "ask for fewer",
        )  # fmt: skip
        return jnp.asarray((self.indices(steps) + 1) / self.train_steps)

    def indices(self, steps: int) -> Int[np.ndarray, "steps"]:
        """The visited steps, from noise to data."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Leading(_Discrete):
    """``i floor(T / N) + offset``: misses the noisiest steps (Lin et al. 2023, table 2; DDIM's linear spacing).

    Attributes:
      train_steps: T, the steps of the model.
      offset: added to each index; 1 for Stable Diffusion.
      drop_last: whether the last of N + 1 such steps is left out, as multistep solvers of diffusers do, so that the
        grid ends above the first steps.
    """

    train_steps: int = 1000
    offset: int = 0
    drop_last: bool = False

    def indices(self, steps: int) -> Int[np.ndarray, "steps"]:
        stride = self.train_steps // (steps + self.drop_last)
        found = np.arange(steps + self.drop_last)[::-1][:steps] * stride + self.offset
        require(
            stride > 0 and int(found[0]) < self.train_steps, "offset", self.offset,
            f"{steps} steps would leave the model's {self.train_steps}", "lower it, or ask for fewer steps",
        )  # fmt: skip
        return found


@dataclasses.dataclass(frozen=True)
class Trailing(_Discrete):
    """``round(T - i T / N) - 1``: from the noisiest step on, which it always visits (Lin et al. 2023, table 2)."""

    train_steps: int = 1000

    def indices(self, steps: int) -> Int[np.ndarray, "steps"]:
        places = np.arange(self.train_steps, 0, -self.train_steps / steps)[:steps]
        return np.round(places).astype(int) - 1


@dataclasses.dataclass(frozen=True)
class Linspace(_Discrete):
    """N evenly spaced steps from the noisiest to the first (Lin et al. 2023, table 2), rounded.

    Attributes:
      train_steps: T, the steps of the model.
      skip: how many of the noisiest steps to leave out. 8 of 1000 is the "iDDPM" column of Karras et al. 2022, table 1.
      drop_last: as for `Leading`.
    """

    train_steps: int = 1000
    skip: int = 0
    drop_last: bool = False

    def indices(self, steps: int) -> Int[np.ndarray, "steps"]:
        last = self.train_steps - 1 - self.skip
        require(
            0 <= self.skip <= self.train_steps - steps, "skip", self.skip,
            f"too few of {self.train_steps} are left for {steps} steps", "skip fewer",
        )  # fmt: skip
        if steps == 1:
            return np.array([last])
        return np.round(np.linspace(0, last, steps + self.drop_last)).astype(int)[::-1][:steps]


@dataclasses.dataclass(frozen=True)
class Strided(_Discrete):
    """Every k-th step from the first on, with the least k that gives N steps: guided-diffusion's "ddimN"."""

    train_steps: int = 1000

    def indices(self, steps: int) -> Int[np.ndarray, "steps"]:
        stride = -(-self.train_steps // steps)
        found = np.arange(0, self.train_steps, stride)[::-1]
        require(
            len(found) == steps, "steps", steps,
            f"no stride over {self.train_steps} steps makes so many", f"ask for {len(found)}",
        )  # fmt: skip
        return found


@dataclasses.dataclass(frozen=True)
class Quadratic(_Discrete):
    """``floor(c i^2)`` up to `last` of the model's steps (Song et al. 2021, "DDIM", appendix D.2).

    Near data, where the paper's steps repeat each other, each is at least one above the one before.
    """

    train_steps: int = 1000
    last: float = 0.8

    def __post_init__(self):
        require(0 < self.last < 1, "last", self.last, "it is a share of the steps", "try 0.8")

    def indices(self, steps: int) -> Int[np.ndarray, "steps"]:
        top = self.last * self.train_steps
        require(steps <= top, "steps", steps, f"only {int(top)} are below last={self.last}", "ask for fewer")
        squares = np.linspace(0, np.sqrt(top), steps + (steps == 1)) ** 2
        return np.maximum(squares.astype(int), np.arange(len(squares)))[::-1][:steps]


@dataclasses.dataclass(frozen=True)
class Respaced(_Discrete):
    """So many steps of each of several equal sections of the model's steps, evenly spaced within each.

    Improved DDPM's spacing (Nichol & Dhariwal 2021): the first and the last step of every section are visited, one
    step alone is its first.

    Attributes:
      train_steps: T, the steps of the model.
      sections: how many steps in each section, from data to noise; together as many as are asked for. Empty is one
        section.
    """

    train_steps: int = 1000
    sections: tuple[int, ...] = ()

    def indices(self, steps: int) -> Int[np.ndarray, "steps"]:
        counts = self.sections or (steps,)
        require(sum(counts) == steps, "sections", counts, f"they do not make {steps} steps", "let them agree")
        size, rest = divmod(self.train_steps, len(counts))
        found, start = [], 0
        for i, count in enumerate(counts):
            length = size + (i < rest)
            require(
                1 <= count <= length, f"sections[{i}]", count, f"the section has {length} steps", "mend it"
            )
            # Summed up and not multiplied, as the spacings of published models were: a half may round either way.
            stride = (length - 1) / max(count - 1, 1)
            places = np.cumsum([0.0, *[stride] * (count - 1)])
            found.append(start + np.round(places).astype(int))
            start += length
        return np.concatenate(found)[::-1]
