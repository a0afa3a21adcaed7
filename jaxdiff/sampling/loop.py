"""The sampling loop: from noise to images, one step of a sampler after the other.

The denoiser is an argument, any function of noisy images and a time. A sampler is one step; a grid says which
times the steps visit; guidance combines conditional predictions into a denoiser. None of them holds another.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.typing import Array, Bool, Float, Images, Keys, Scalar

DenoiseFn = Callable[[Images, Scalar], Prediction]
"""(images, one time for all of them) -> prediction."""

Conditions = Any
"""A tree of arrays with a leading batch axis, handed through to the conditional denoiser."""

ConditionalDenoise = Callable[[Images, Scalar, Conditions, Bool[Array, "batch"]], Prediction]
"""(images, one time for all of them, conditions, which images are to ignore theirs) -> prediction."""

PRIOR = 2**31 - 1  # the number folded into a key for the initial noise; steps count from 0 and never get here


class State(NamedTuple):
    """Where a sampler is: the images, and what it remembers of earlier steps."""

    x: Images
    memory: Any = ()


@runtime_checkable
class Sampler(Protocol):
    """One step from time t to t_next < t, where there still is noise at t_next."""

    @property
    def calls(self) -> int:
        """Calls of the denoiser in one step."""
        ...

    def init(self, x: Images) -> State: ...

    def step(
        self, denoise: DenoiseFn, process: Process, state: State, t: Scalar, t_next: Scalar, keys: Keys
    ) -> State: ...


@runtime_checkable
class Grid(Protocol):
    """The times that a sampler visits, falling from noise. The end, clean data, is not among them."""

    def __call__(self, process: Process, steps: int) -> Float[Array, "steps"]: ...


@runtime_checkable
class Guidance(Protocol):
    """Makes a denoiser out of a conditional one and the conditions of a batch."""

    def __call__(self, denoise: ConditionalDenoise, fields: Conditions, batch: int) -> DenoiseFn: ...


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How images are made: the sampler, its grid and number of steps, and the guidance."""

    sampler: Sampler
    grid: Grid
    guidance: Guidance
    steps: int

    def __post_init__(self):
        require(self.steps >= 1, "steps", self.steps, "no image comes of no step", "give 1 or more")

    @property
    def calls(self) -> int:
        """Calls of the denoiser for one batch (guidance may double the batch of a call)."""
        return (self.steps - 1) * self.sampler.calls + 1

    def __call__(
        self,
        denoise: ConditionalDenoise,
        process: Process,
        fields: Conditions,
        shape: tuple[int, int, int],
        keys: Keys,
    ) -> Images:
        """Draw one image of `shape` (height, width, channels) for each key, under its conditions."""
        batch = keys.shape[0]
        times = self.grid(process, self.steps)
        noise = noise_like(_fold_in(keys, PRIOR), jnp.zeros((batch, *shape)))
        x = noise * process.signal(times[0]).sigma
        return sample(self.sampler, self.guidance(denoise, fields, batch), process, times, x, keys)


def sample(
    sampler: Sampler,
    denoise: DenoiseFn,
    process: Process,
    times: Float[Array, "steps"],
    x: Images,
    keys: Keys,
) -> Images:
    """Clean images from noisy ones at ``times[0]``. The last step is the jump to the predicted image."""
    x = integrate(sampler, denoise, process, times, x, keys)
    return denoise(x, times[-1].astype(x.dtype)).x_0


def integrate(
    sampler: Sampler,
    denoise: DenoiseFn,
    process: Process,
    times: Float[Array, "steps"],
    x: Images,
    keys: Keys,
) -> Images:
    """Noisy images at ``times[-1]`` from noisy images at ``times[0]``."""
    times = times.astype(x.dtype)

    def step(state: State, inputs):
        index, t, t_next = inputs
        return sampler.step(denoise, process, state, t, t_next, _fold_in(keys, index)), None

    state, _ = jax.lax.scan(step, sampler.init(x), (jnp.arange(len(times) - 1), times[:-1], times[1:]))
    return state.x


def noise_like(keys: Keys, x: Images) -> Images:
    """Standard normal images in float32, each drawn from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], jnp.float32))(keys)


def _fold_in(keys: Keys, number) -> Keys:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
