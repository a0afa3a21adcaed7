"""Compiled programs of the training step, one for each shape of batches."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxdiff.training.step import Frozen, TrainState
from jaxdiff.typing import Metrics


class Programs:
    """The training step, compiled once for each shape of batches: ahead by `compiled`, or else when it is called.

    Args:
      jitted: the step, see `step.jit_train_step`.
      abstract: shapes and shardings of the state.
      frozen: what is not trained.
    """

    def __init__(self, jitted: Any, abstract: TrainState, frozen: Frozen):
        self._jitted, self._abstract, self._frozen = jitted, abstract, frozen
        self._programs: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self._programs)

    def __call__(self, state: TrainState, batch: Any, frozen: Frozen) -> tuple[TrainState, Metrics]:
        return self.compiled(batch)(state, batch, frozen)

    def compiled(self, batch: Any) -> Any:
        """The program for batches of this shape."""
        leaves, tree = jax.tree.flatten(batch)
        kind = tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if kind not in self._programs:
            self._programs[kind] = self._jitted.lower(self._abstract, batch, self._frozen).compile()
        return self._programs[kind]


def repeated(example: Mapping[str, Any], rows: int) -> dict[str, np.ndarray]:
    """A batch that is one example `rows` times; it takes no memory."""
    values = {name: np.asarray(value) for name, value in example.items()}
    return {name: np.broadcast_to(value, (rows, *value.shape)) for name, value in values.items()}
