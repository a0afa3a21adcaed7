"""Several predictions for the same noisy data, which guidance combines into one."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.protocols import Conditional, Conditions, GuidedDenoiser, with_state
from jaxdiff.typing import Data, Scalar


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Several predictions, with the state of the models that make them.

    Attributes:
      call: ``(x_t, t, state) -> (predictions, new state)``.
      init: ``x -> state`` before the first call.
    """

    call: Callable[[Data, Scalar, Any], tuple[list[Prediction], Any]]
    init: Callable[[Data], Any]

    def combined(self, combine: Callable[[list[Prediction]], Prediction]) -> GuidedDenoiser:
        """The denoiser whose prediction is ``combine(predictions)``."""

        def call(x: Data, t: Scalar, state: Any) -> tuple[Prediction, Any]:
            found, state = self.call(x, t, state)
            return combine(found), state

        return GuidedDenoiser(call, self.init)

    def beside(self, other: "Predictions") -> "Predictions":
        """These predictions, then the other ones."""

        def call(x: Data, t: Scalar, state: Any) -> tuple[list[Prediction], Any]:
            ours, our_state = self.call(x, t, state[0])
            theirs, their_state = other.call(x, t, state[1])
            return ours + theirs, (our_state, their_state)

        return Predictions(call, lambda x: (self.init(x), other.init(x)))


def predictions(
    denoise: Conditional, conditions: Conditions, dropped: Sequence[Collection[str]]
) -> Predictions:
    """One prediction for each item of `dropped`, the names of conditions to ignore; all in one call."""
    model, branches = with_state(denoise), len(dropped)

    def rows(x: Data) -> tuple[Any, Any, Any]:
        # Copies of an example are adjacent, so that a batch split over devices needs no communication.
        repeated = jax.tree.map(lambda value: jnp.repeat(value, branches, axis=0), (x, conditions))
        drop = {
            name: jnp.tile(jnp.array([name in names for names in dropped]), x.shape[0]) for name in conditions
        }
        return *repeated, drop

    def call(x: Data, t: Scalar, state: Any) -> tuple[list[Prediction], Any]:
        repeated, *others = rows(x)
        together, state = model.call(repeated, t, *others, state)
        return [jax.tree.map(lambda value, i=i: value[i::branches], together) for i in range(branches)], state

    return Predictions(call, lambda x: model.init(*rows(x)))
