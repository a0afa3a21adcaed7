"""How images are made, as one part of a config."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UserError, require
from jaxdiff.process.gaussian import Process
from jaxdiff.sampling.loop import (
    ConditionalDenoise,
    Conditions,
    DenoiseFn,
    Grid,
    Guidance,
    Inpainting,
    Known,
    Modifier,
    Sampler,
    StatefulDenoiser,
    as_path,
    ends,
    fold_in,
    modify,
    noise_like,
    sample,
)
from jaxdiff.typing import Images, Keys

PRIOR = 2**31 - 1  # the number folded into a key for the initial noise; steps count from 0 and never get here


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How images are made.

    Attributes:
      sampler, grid: the steps, and the times that they visit.
      guidance: how conditions act.
      steps: the number of times on the grid.
      modifiers: what is done to the guided prediction, in this order.
      inpainting: how images that are known in part are completed.
    """

    sampler: Sampler
    grid: Grid
    guidance: Guidance
    steps: int
    modifiers: tuple[Modifier, ...] = ()
    inpainting: Inpainting | None = None

    def __post_init__(self):
        require(self.steps >= 1, "steps", self.steps, "no image comes of no step", "give 1 or more")

    def calls(self, process: Process) -> int:
        """Calls of the denoiser for one batch (guidance may double the batch of a call)."""
        path = as_path(self.grid(process, self.steps))
        rises = 1 + np.flatnonzero(np.asarray(path.start)[1:] > np.asarray(path.end)[:-1])
        runs = np.diff(np.array([0, *rises, len(path.start)]))
        return sum(self.sampler.calls(int(steps)) for steps in runs) + 1

    def __call__(
        self,
        denoise: ConditionalDenoise,
        process: Process,
        conditions: Conditions,
        shape: tuple[int, int, int],
        keys: Keys,
        guide: ConditionalDenoise | None = None,
        noise: Images | None = None,
        known: Known | None = None,
    ) -> Images:
        """Draw one image of `shape` (height, width, channels) for each key, under its conditions.

        Args:
          denoise, process, conditions: the model, and what its images are to be.
          shape: of one image.
          keys: one for each image.
          guide: another model, for guidance that wants one.
          noise: standard normal images to begin with, instead of some drawn from the keys.
          known: what is given of the images, for the recipe's `inpainting`.
        """
        times = self.grid(process, self.steps)
        first = ends(times)[0]
        if noise is None:
            noise = noise_like(fold_in(keys, PRIOR), jnp.zeros((keys.shape[0], *shape)))
        x = noise * process.signal(first).sigma
        guided = self.denoiser(denoise, process, conditions, keys, guide)
        if known is not None:
            inpainting = self.inpainting
            if inpainting is None:
                fix = "name a method, such as Replacement"
                raise UserError(f"sampling.inpainting=None: images are known in part. Fix: {fix}")
            guided = modify(guided, lambda fn: inpainting(fn, process, known))
            x = jnp.where(known.mask, x, process.signal(first).alpha * known.images + x)
        return sample(self.sampler, guided, process, times, x, keys)

    def denoiser(
        self,
        denoise: ConditionalDenoise,
        process: Process,
        conditions: Conditions,
        keys: Keys,
        guide: ConditionalDenoise | None = None,
    ) -> DenoiseFn | StatefulDenoiser:
        """What the sampler follows: the model under its conditions, guided and modified."""
        guided = self.guidance(denoise, process, conditions, keys, guide)
        for modifier in self.modifiers:
            guided = modify(guided, lambda fn, modifier=modifier: modifier(fn, process, conditions, keys))
        return guided
