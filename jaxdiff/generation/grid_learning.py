"""Learned grids of a trained model, see `jaxdiff.sampling.learning`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import expect
from jaxdiff.generation import compiled
from jaxdiff.generation.model import SampledModel
from jaxdiff.process.gaussian import Process
from jaxdiff.sampling import learning
from jaxdiff.sampling.grids.given import Given
from jaxdiff.sampling.loop import ends
from jaxdiff.sampling.protocols import TimePath, adds_noise, spans
from jaxdiff.sampling.recipe import Recipe

ConditionsOf = Callable[[np.ndarray], Mapping[str, Any]]
"""From numbers of samples to their conditions, as a `Generator` takes them."""


class LearnedGrid(NamedTuple):
    """A recipe of few steps with learned times.

    Attributes:
      recipe: the recipe.
      error: root mean squared distance of its data from the exact ones, of samples that were not learned from.
      error_before: that of the grid that it started from.
      errors: mean squared distances in each iteration, of the samples that it learned from.
      levels: ``sigma / alpha`` at the learned times; infinite at pure noise.
    """

    recipe: Recipe
    error: float
    error_before: float
    errors: np.ndarray
    levels: tuple[float, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class GridLearner(SampledModel):
    """A trained model whose recipe is fitted to few steps.

    Samples of the recipe with `exact_steps` steps are taken for exact. Few steps of the same sampler, with the same
    guidance and from the same noise, are fitted to them.

    Attributes:
      exact_steps: number of steps of exact samples.
      batches: number of batches, of `batch_size` samples each, to learn from; as many again measure the error.
      iterations, rate: of `jaxdiff.sampling.learning.fit`.
      seed: of the samples.
    """

    batch_size: int = 32
    exact_steps: int = 100
    batches: int = 4
    iterations: int = 200
    rate: float = 0.05
    seed: int = 0

    @classmethod
    def of(cls, model: SampledModel, **options: Any) -> "GridLearner":
        """A learner with the weights and the recipe of a model."""
        fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(SampledModel)}
        return cls(**{**fields, **options})

    def __call__(
        self,
        steps: int,
        conditions_of: ConditionsOf,
        report: Callable[[int, float], object] = lambda *_: None,
    ) -> LearnedGrid:
        """Learn the times of a number of steps.

        Args:
          steps: number of times, at least 2: the first one stays.
          conditions_of: the conditions of samples by their numbers, ``0`` to ``2 batches batch_size - 1``.
          report: called with the number and the error of each iteration.

        Raises:
          UserError: the sampler adds noise, or the grid returns to noise, so that few steps cannot follow many.
        """
        self.check_steps(steps)
        process = self._followed.process_of(self.params)
        first, start = self._start(process, steps)
        recipe = dataclasses.replace(self.recipe, steps=steps)
        size = self._rows(self.batch_size)
        examples = [
            self._example(number * size + np.arange(size, dtype=np.uint32), conditions_of, process)
            for number in range(2 * self.batches)
        ]
        known, held_out = examples[: self.batches], examples[self.batches :]

        def distance(log_snr: Any, inputs: Any, index: np.ndarray, exact: Any) -> tuple[Any, Any]:
            given = self._static, recipe, first, self._trees, inputs, index, np.uint32(self.seed)
            return compiled.distance_at_end(*given, exact, log_snr)

        def gradient(log_snr: Any, number: int) -> tuple[Any, Any]:
            error, slope = distance(log_snr, *known[number % len(known)])
            report(number, float(error))
            return error, slope

        def error(log_snr: Any) -> float:
            return float(np.sqrt(np.mean([float(distance(log_snr, *example)[0]) for example in held_out])))

        fitted = learning.fit(gradient, start, self.iterations, self.rate)
        times = learning.After(first, jnp.asarray(fitted.log_snr))(process, steps)
        levels = np.exp(-np.asarray(process.log_snr(times), np.float64) / 2)
        found = dataclasses.replace(recipe, grid=Given(tuple(np.asarray(times, np.float64).tolist())))
        return LearnedGrid(found, error(fitted.log_snr), error(start), fitted.errors, tuple(levels.tolist()))

    def check_steps(self, steps: int) -> None:
        """Raise `UserError` for a number of steps that cannot follow exact samples; needs no weights."""
        sampler, fix = self.recipe.sampler, "use one without noise, such as DpmSolver2M or Heun"
        expect(not adds_noise(sampler), "sampling.sampler", sampler, "a sampler that adds no noise", fix)
        expect(
            not spans(sampler), "sampling.sampler", sampler, "a sampler of one time, not of flow maps", fix
        )
        reuse, fix = self.recipe.reuse, "leave reuse out (--config.sampling.reuse=None)"
        expect(reuse is None, "sampling.reuse", reuse, "None, since a gradient needs whole calls", fix)
        expect(steps >= 2, "steps", steps, "at least 2, since the first time stays", "give 2 or more")
        expect(steps < self.exact_steps, "steps", steps, f"fewer than the {self.exact_steps} of exact samples",
               "give fewer, or more exact_steps")  # fmt: skip

    def _start(self, process: Process, steps: int) -> tuple[float, np.ndarray]:
        """The first time of exact samples, and the log-SNRs of the other times of the recipe's own grid."""
        few: Any = self.recipe.grid(process, steps)
        falls = not isinstance(few, TimePath)
        expect(falls, "sampling.grid", self.recipe.grid, "a grid that only falls", "use one such as Karras")
        many = self.recipe.grid(process, self.exact_steps)
        return float(ends(many)[0]), np.asarray(process.log_snr(few[1:]), np.float32)

    def _example(self, index: np.ndarray, conditions_of: ConditionsOf, process: Process) -> tuple:
        """The inputs of a batch, the numbers of its samples, and their exact data."""
        inputs, _ = self._request(len(index), conditions_of(index.astype(int)), None)
        recipe = dataclasses.replace(self.recipe, steps=self.exact_steps)
        times: Any = self.recipe.grid(process, self.exact_steps)
        log_snr = jnp.asarray(process.log_snr(times[1:]), jnp.float32)
        given = self._static, recipe, float(times[0]), self._trees, inputs, index, np.uint32(self.seed)
        return inputs, index, compiled.data_at_end(*given, log_snr)
