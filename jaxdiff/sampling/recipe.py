"""The sampling recipe: sampler, grid, guidance, modifiers and ending as one block of a config."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UserError, expect, one_of
from jaxdiff.process.gaussian import Process
from jaxdiff.process.labels import NoiseLabel
from jaxdiff.sampling.loop import Draws, Observe, as_path, ends, integrate, sample
from jaxdiff.sampling.noise import fold_in, noise_like
from jaxdiff.sampling.plan import Plan, of_one_length, with_end
from jaxdiff.sampling.protocols import (
    ConditionalDenoise,
    Conditions,
    Drawing,
    FlowMapDenoise,
    Grid,
    Guidance,
    GuidedDenoiser,
    Inpainting,
    KnownData,
    Modifier,
    Sampler,
)
from jaxdiff.sampling.reuse import DeepCache
from jaxdiff.typing import Array, Bool, Data, Keys, Scalar

PRIOR = 2**31 - 1  # folded into a key for the initial noise; step numbers count from 0 and stay below
MOST_STEPS = 100_000
"""Of a grid: a hundred times the steps of the longest published samplers."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How samples are drawn.

    By default the last step is the jump to the predicted x_0. The fields from `t_end` to `initial` are details of
    published samplers, under the names that diffusers gives them where it has one.

    Attributes:
      sampler, grid: the method, and the times that its steps visit.
      guidance: how conditions act.
      steps: number of times on the grid, at most 100,000.
      modifiers: changes to the guided prediction, in this order.
      inpainting: how partially known data are completed, such as `Replacement`.
      t_end: time at which sampling ends, by a last step of the sampler; the result keeps the noise of that level. None
        ends with the predicted x_0. For a model of T steps ``1 / T`` is its first step: ``set_alpha_to_one=False`` of
        DDIM and PNDM, and ``final_sigmas_type="sigma_min"`` on grids of the model's steps. 0 is a step to clean data:
        ``set_alpha_to_one=True`` of PNDM.
      lower_order_final: bound the order of multistep samplers by the number of steps left. diffusers does so by
        default; for DPM-Solver and DEIS only below 15 steps.
      euler_at_final: take the last step of a multistep sampler at first order. Without `t_end` it always is.
      lower_order_below: `lower_order_final` acts with fewer steps than this only; None for any number.
      fixed_stride: T, number of steps of the model: each step falls by ``T // steps`` of them, wherever the next time
        of the grid is, as those of diffusers' DDIM do. None leads to the next time.
      initial: the initial noise. "process" has the standard deviation sigma of the process at the first time, "unit"
        that of data of unit variance there, ``sqrt(alpha^2 + sigma^2)``.
      process, noise_label: in place of the model's own; None for these. A process with the same steps and other noise
        levels between them, or another label there, is a detail of how a model is sampled.
      reuse: how calls of the model reuse features of earlier calls; None for calls of the whole model.
      until: take only the steps that begin at this time or above. The result is noisy data where the next step would
        begin.
      below: take only the steps that begin below this time, from noisy data.
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
    lower_order_below: int | None = None
    fixed_stride: int | None = None
    initial: str = "process"
    process: Process | None = None
    noise_label: NoiseLabel | None = None
    reuse: DeepCache | None = None
    until: float | None = None
    below: float | None = None

    def __post_init__(self):
        one_of(self, "initial", ("process", "unit"))
        expect(
            1 <= self.steps <= MOST_STEPS, "steps", self.steps, f"a count from 1 to {MOST_STEPS:,}", "try 50"
        )

    def calls(self, process: Process) -> int:
        """Number of function evaluations (NFE) per sample; guidance may double the batch of a call."""
        plan = self.plan(process)
        path = as_path(plan.times)
        returns = 1 + np.flatnonzero(np.asarray(path.start)[1:] > np.asarray(path.end)[:-1])
        runs = np.diff(np.array([0, *returns, len(path.start)]))
        return sum(self.sampler.calls(int(steps)) for steps in runs) + plan.jumps

    def plan(self, process: Process) -> Plan:
        """The steps: those of the grid, the ending, and of both the part that `until` and `below` leave.

        Raises:
          UserError: no step is left, or a part is wanted of a grid that returns to noise.
        """
        if self.until is None and self.below is None:
            return self._whole(process)
        with jax.ensure_compile_time_eval():
            return self._whole(process).part(self.until, self.below)

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
        x: Data | None = None,
        observe: Observe | None = None,
        draws: Draws | None = None,
    ) -> Data:
        """Draw one sample of `shape` for each key.

        Args:
          denoise, process, conditions: the model, its noise process (the recipe's, if it has one), and what the
            samples are conditioned on.
          shape: of one sample, without the batch axis.
          keys: one per sample.
          guiding_model: second model, for guidance that uses one.
          noise: standard normal initial noise [batch, *shape]; by default drawn from the keys.
          known: partially known data, for the recipe's `inpainting`.
          x: noisy data at the first time, in place of noise; the result of a recipe with `until`.
          observe: see `jaxdiff.sampling.loop.sample`.
          draws: standard normal noise for each step of the sampler, [`draws_of_steps`, batch, *shape]; by default drawn
            from the keys. Noise by which a grid returns to noise is drawn in any case.

        Raises:
          UserError: `known` is given and the recipe has no `inpainting`; an input of the guidance is missing; both
            noise and x are given, or a recipe with `below` has no x; draws that the sampler does not use.
        """
        self._check(process, noise, x)
        plan = self.plan(process)
        if draws is not None:
            self._check_draws(len(draws), len(as_path(plan.times).start))
        first = ends(plan.times)[0]
        if x is None and noise is None:
            noise = noise_like(fold_in(keys, PRIOR), jnp.zeros((keys.shape[0], *shape)))
        start: Any = x if noise is None else noise * self.initial_std(process, first)
        guided = self.denoiser(denoise, process, conditions, keys, guiding_model)
        if known is not None:
            start, guided = self._completing(process, first, start, noise, guided, known)
        run = sample if plan.jumps else integrate
        steps = (plan.times, start, keys, plan.max_orders, plan.first)
        found = run(self.sampler, guided, process, *steps, observe, draws)
        if known is None or self.until is not None:
            return found
        return jnp.where(known.mask, found, known.values)  # a step to `t_end` leaves noise in them

    def data_mask(self, mask: Bool[Array, "batch height width _"], shape: tuple[int, ...]) -> Array:
        """A mask of pixels as one of data of this shape, by the rule of `inpainting` where data are smaller."""
        return mask if mask.shape[1:3] == shape[:2] else self._inpainting().data_mask(mask, shape)

    def draws_of_steps(self, process: Process) -> int:
        """The number of steps in which a `Drawing` sampler adds noise; 0 for other samplers."""
        own = isinstance(self.sampler, Drawing) and self.sampler.draws
        return len(as_path(self.plan(process).times).start) if own else 0

    def initial_std(self, process: Process, t: Scalar) -> Scalar:
        """The standard deviation of the initial noise for a first time t."""
        alpha, sigma = process.signal(t)
        return sigma if self.initial == "process" else jnp.hypot(alpha, sigma)

    def denoiser(
        self,
        denoise: ConditionalDenoise,
        process: Process,
        conditions: Conditions,
        keys: Keys,
        guiding_model: ConditionalDenoise | None = None,
    ) -> GuidedDenoiser:
        """The denoiser that the sampler follows: conditional, guided and modified.

        Of a `FlowMapDenoise` also that of each step, with guidance and modifiers around the model of the step. So they
        do not know of a second time.
        """

        def built(denoise: ConditionalDenoise) -> GuidedDenoiser:
            model = denoise if self.reuse is None else self.reuse(denoise)
            guided = self.guidance(model, process, conditions, keys, guiding_model)
            for modifier in self.modifiers:
                guided = modifier(guided, process, conditions, keys)
            return guided

        if not isinstance(denoise, FlowMapDenoise):
            return built(denoise)
        return dataclasses.replace(built(denoise), until=lambda t_next: built(denoise.until(t_next)))

    def _whole(self, process: Process) -> Plan:
        """All steps of the grid, and the ending."""
        times = self.grid(process, self.steps)
        if self.fixed_stride is None:
            plan = with_end(times, self.t_end)
        else:
            plan = of_one_length(times, self.fixed_stride // self.steps, self.fixed_stride, self.t_end)
        few = self.lower_order_below is None or self.steps < self.lower_order_below
        return plan.bounded(self.lower_order_final and few, self.euler_at_final)

    def _check(self, process: Process, noise: Data | None, x: Data | None) -> None:
        """Raise `UserError` where the arguments of a call contradict each other or the recipe."""
        expect(
            self.process is None or process == self.process,
            "process", process, "the recipe's own", "run the model with recipe.process",
        )  # fmt: skip
        expect(noise is None or x is None, "x", "given", "either noise or x", "leave one out", "both")
        expect(self.below is None or x is not None, "below", self.below, "noisy data x to start from",
               "give x, or leave out below", "none")  # fmt: skip

    def _check_draws(self, given: int, steps: int) -> None:
        """Raise `UserError` unless the sampler adds as many draws of noise as are given."""
        fix = "leave the noise of the steps out, or use a sampler with noise such as Ancestral"
        own = isinstance(self.sampler, Drawing) and self.sampler.draws
        expect(
            own,
            "draws",
            given,
            "a sampler that adds noise, once in each step",
            fix,
            type(self.sampler).__name__,
        )
        expect(
            given == steps, "draws", given, f"one for each of {steps} steps that add noise", "give as many"
        )

    def _completing(
        self,
        process: Process,
        first: Scalar,
        start: Data,
        noise: Data | None,
        guided: GuidedDenoiser,
        known: KnownData,
    ) -> tuple[Data, GuidedDenoiser]:
        """The data at the first time and the denoiser, with the known part in both; noisy data come without noise."""
        method, (alpha, sigma) = self._inpainting(), process.signal(first)
        if noise is None:
            method, noise = method.from_data(), (start - alpha * known.values) / sigma
        else:
            start = method.start(start, alpha * known.values + sigma * noise, known.mask)
        known = known._replace(noise=noise)
        return start, guided.wrapped(lambda denoise: method(denoise, process, known))

    def _inpainting(self) -> Inpainting:
        if self.inpainting is None:
            fix = "name a method, such as Replacement"
            raise UserError(
                f"sampling.inpainting=None: expected a method for partially known data, got None. Fix: {fix}"
            )
        return self.inpainting


@dataclasses.dataclass(frozen=True)
class Preset(Recipe):
    """A recipe that is chosen as a whole: under its name it also replaces the steps and the guidance of the run."""
