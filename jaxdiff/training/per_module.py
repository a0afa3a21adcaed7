"""Optimizers of several networks that are trained together, such as an autoencoder and its discriminator."""

import dataclasses
from collections.abc import Mapping

import jax
import optax
from flax.core import FrozenDict

from jaxdiff.errors import expect
from jaxdiff.training.optimizer import Optimizer
from jaxdiff.trees import matches, paths, some_of
from jaxdiff.typing import Params

REST = "rest"


@dataclasses.dataclass(frozen=True)
class PerModule:
    """Another optimizer for some modules, each with its own rate, schedule and bound of the gradient's norm.

    Attributes:
      optimizer: of the parameters that no pattern names.
      others: optimizers by pattern of paths, see `jaxdiff.trees`, such as ``{"discriminator": spec(AdamW, ...)}``. The
        first pattern that names a parameter counts.
    """

    optimizer: Optimizer
    others: Mapping[str, Optimizer] = FrozenDict()

    def __post_init__(self):
        object.__setattr__(self, "others", FrozenDict(self.others))
        for pattern, other in self.others.items():
            fix = "name all frozen parameters in the first optimizer"
            expect(not other.frozen, f"config.optimizer.others.{pattern}.frozen", other.frozen, "()", fix)

    @property
    def learning_rate(self) -> float:
        return self.optimizer.learning_rate

    @property
    def frozen(self) -> tuple[str, ...]:
        return self.optimizer.frozen

    def make(self, total_steps: int) -> optax.GradientTransformation:
        """The optimizer of a run of `total_steps`.

        Raises:
          UserError: at `init`, a pattern names no parameter.
        """
        parts = {REST: self.optimizer, **self.others}
        return optax.partition({name: part.make(total_steps) for name, part in parts.items()}, self._labels)

    def _labels(self, params: Params) -> Params:
        """For each parameter the pattern that names it."""
        found = list(paths(params))
        for pattern in self.others:
            some, fix = (
                any(matches(path, (pattern,)) for path in found),
                f"use paths such as {some_of(found)}",
            )
            field, expected = "config.optimizer.others", "a pattern that names a parameter"
            expect(some, field, pattern, expected, fix, "no match")
        labels = [next((each for each in self.others if matches(path, (each,))), REST) for path in found]
        return jax.tree.unflatten(jax.tree.structure(params), labels)
