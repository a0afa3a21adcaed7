"""Adafactor: Adam's adaptive steps with a state of a few numbers for each row and column of a matrix."""

import dataclasses
import math
from typing import Any

import jax
import optax

from jaxdiff.errors import between, expect, positive
from jaxdiff.training.optimizer import Constant, Schedule, are_weights
from jaxdiff.typing import Params


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adafactor: squared gradients averaged over rows and over columns, and no momentum (Shazeer & Stern 2018).

    The averages begin with the first gradient and become ever longer, ``1 - step^-decay_power``. A kernel counts as a
    matrix, see `matrix_shape`. If its sides are less than `min_factored`, each number has an average of its own.
    An update of root mean square 1 has the size of the learning rate, which is about Adam's.

    Attributes:
      learning_rate, schedule: as in `AdamW`.
      relative: multiply updates by the root mean square of the parameter, 0.001 at least, as in the paper's section 8;
        the learning rate is then a relative one.
      decay_power: of the averages, in (0, 1).
      update_clip: bound of the root mean square of the update of an array, before the learning rate; None for no bound.
      min_factored: smallest sides of matrices whose averages are factored.
      eps: added to squared gradients.
      weight_decay: as in `AdamW`.
      clip_norm, frozen: as in `AdamW`.
    """

    learning_rate: float = 1e-4
    schedule: Schedule = Constant()
    relative: bool = False
    decay_power: float = 0.8
    update_clip: float | None = 1.0
    min_factored: int = 128
    eps: float = 1e-30
    weight_decay: float = 0.0
    clip_norm: float | None = None
    frozen: tuple[str, ...] = ()

    def __post_init__(self):
        positive(self, "learning_rate", "min_factored", "eps", "clip_norm")
        between(self, "decay_power", 0, 1, open_low=True, open_high=True)
        between(self, "weight_decay", 0, math.inf)
        clip = self.update_clip
        expect(
            clip is None or 1 <= clip < math.inf, "update_clip", clip, "a number >= 1, or None", "give 1.0"
        )

    def make(self, total_steps: int) -> optax.GradientTransformation:
        """The optimizer of a run of `total_steps`."""
        chain = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        chain.append(
            optax.scale_by_factored_rms(
                decay_rate=self.decay_power, min_dim_size_to_factor=self.min_factored, epsilon=self.eps
            )
        )
        if self.update_clip is not None:
            chain.append(optax.clip_by_block_rms(self.update_clip))
        if self.relative:
            chain.append(optax.scale_by_param_block_rms())
        if self.weight_decay:
            chain.append(optax.add_decayed_weights(self.weight_decay, are_weights))
        rate = self.schedule(self.learning_rate, total_steps)
        return of_matrices(optax.chain(*chain, optax.scale_by_learning_rate(rate)))


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape as a matrix: its first axes are the rows and the others the columns, as near to a square as possible.

    So the projections of all heads are one matrix, and so are the weights of all pixels of a convolution.
    """
    if len(shape) <= 2:
        return shape
    cuts = [(math.prod(shape[:cut]), math.prod(shape[cut:])) for cut in range(1, len(shape))]
    return max(cuts, key=min)


def of_matrices(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on all arrays as matrices."""

    def init(params: Params) -> Any:
        return inner.init(_matrices(params))

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        found, state = inner.update(_matrices(updates), state, _matrices(params))
        return jax.tree.map(lambda new, old: new.reshape(old.shape), found, updates), state

    return optax.GradientTransformation(init, update)


def _matrices(tree: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf.reshape(matrix_shape(leaf.shape)), tree)
