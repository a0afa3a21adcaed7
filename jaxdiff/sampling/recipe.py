"""The sampling recipe: sampler, grid, guidance, modifiers and ending as one block of a config."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UserError, expect
from jaxdiff.process.gaussian import Process
from jaxdiff.sampling.loop import as_path, ends, integrate, sample
from jaxdiff.sampling.noise import fold_in, noise_like
from jaxdiff.sampling.protocols import (
    ConditionalDenoise,
    Conditions,
    Grid,
    Guidance,
    GuidedDenoiser,
    Inpainting,
    KnownData,
    Modifier,
    Sampler,
    TimePath,
)
from jaxdiff.typing import Array, Data, Float, Keys

PRIOR = 2**31 - 1  # folded into a key for the initial noise; step numbers count from 0 and stay below
UNBOUNDED = 2**31 - 1
MOST_STEPS = 100_000
"""Of a grid: a hundred times the steps of the longest published samplers."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How samples are drawn.

    By default the last step is the jump to the predicted x_0. The last three fields are the endings of published
    samplers, under the names that diffusers gives them where it has one.

    Attributes:
      sampler, grid: the method, and the times that its steps visit.
      guidance: how conditions act.
      steps: number of times on the grid, at most 100,000.
      modifiers: changes to the guided prediction, in this order.
      inpainting: how partially known data are completed.
      t_end: time at which sampling ends, by a last step of the sampler; the result keeps the noise of that level. None
        ends with the predicted x_0. For a model of T steps ``1 / T`` is its first step: ``set_alpha_to_one=False`` of
        DDIM and PNDM, and ``final_sigmas_type="sigma_min"`` on grids of the model's steps. 0 is a step to clean data:
        ``set_alpha_to_one=True`` of PNDM.
      lower_order_final: bound the order of multistep samplers by the number of steps left. diffusers does so by
        default; for DPM-Solver and DEIS only below 15 steps.
      euler_at_final: take the last step of a multistep sampler at first order. Without `t_end` it always is.
    """

    sampler: Sampler
    grid: Grid
    guidance: Guidance
    steps: int
    modifiers: tuple[Modifier, ...] = ()
    inpainting: Inpainting | None = None
    t_end: float | None = None
    lower_order_final: bool = False
    euler_at_final: bool = False

    def __post_init__(self):
        expect(
            1 <= self.steps <= MOST_STEPS, "steps", self.steps, f"a count from 1 to {MOST_STEPS:,}", "try 50"
        )

    def calls(self, process: Process) -> int:
        """Number of function evaluations (NFE) per sample; guidance may double the batch of a call."""
        path = as_path(self.times(process))
        returns = 1 + np.flatnonzero(np.asarray(path.start)[1:] > np.asarray(path.end)[:-1])
        runs = np.diff(np.array([0, *returns, len(path.start)]))
        return sum(self.sampler.calls(int(steps)) for steps in runs) + (self.t_end is None)

    def times(self, process: Process) -> Float[Array, "times"] | TimePath:
        """The grid's times, followed by `t_end` if it is given."""
        times = self.grid(process, self.steps)
        if self.t_end is None:
            return times
        if not isinstance(times, TimePath):
            return jnp.append(times, self.t_end)
        return TimePath(jnp.append(times.start, times.end[-1]), jnp.append(times.end, self.t_end))

    def __call__(
        self,
        denoise: ConditionalDenoise,
        process: Process,
        conditions: Conditions,
        shape: tuple[int, ...],
        keys: Keys,
        guiding_model: ConditionalDenoise | None = None,
        noise: Data | None = None,
        known: KnownData | None = None,
    ) -> Data:
        """Draw one sample of `shape` for each key.

        Args:
          denoise, process, conditions: the model, and what the samples are conditioned on.
          shape: of one sample, without the batch axis.
          keys: one per sample.
          guiding_model: second model, for guidance that uses one.
          noise: standard normal initial noise [batch, *shape]; by default drawn from the keys.
          known: partially known data, for the recipe's `inpainting`.

        Raises:
          UserError: `known` is given and the recipe has no `inpainting`; or an input of the guidance is missing.
        """
        times = self.times(process)
        first = ends(times)[0]
        if noise is None:
            noise = noise_like(fold_in(keys, PRIOR), jnp.zeros((keys.shape[0], *shape)))
        x = noise * process.signal(first).sigma
        guided = self.denoiser(denoise, process, conditions, keys, guiding_model)
        if known is not None:
            guided = self._inpainting()(guided, process, known)
            x = jnp.where(known.mask, x, process.signal(first).alpha * known.values + x)
        run = sample if self.t_end is None else integrate
        return run(self.sampler, guided, process, times, x, keys, self.max_orders(times))

    def denoiser(
        self,
        denoise: ConditionalDenoise,
        process: Process,
        conditions: Conditions,
        keys: Keys,
        guiding_model: ConditionalDenoise | None = None,
    ) -> GuidedDenoiser:
        """The denoiser that the sampler follows: conditional, guided and modified."""
        guided = self.guidance(denoise, process, conditions, keys, guiding_model)
        for modifier in self.modifiers:
            guided = modifier(guided, process, conditions, keys)
        return guided

    def max_orders(self, times: Float[Array, "times"] | TimePath) -> Array | None:
        """For each step of the loop a bound on its order; None where the ending bounds none."""
        count, jumps = len(as_path(times).start), self.t_end is None
        left = np.arange(count, 0, -1) + jumps  # steps left, the jump to x_0 included
        bounds = left if self.lower_order_final else np.full(count, UNBOUNDED)
        if self.euler_at_final:
            bounds = np.where(left == 1, 1, bounds)
        return jnp.asarray(bounds, jnp.int32) if np.any(bounds < UNBOUNDED) else None

    def _inpainting(self) -> Inpainting:
        if self.inpainting is None:
            fix = "name a method, such as Replacement"
            raise UserError(
                f"sampling.inpainting=None: expected a method for partially known data, got None. Fix: {fix}"
            )
        return self.inpainting
