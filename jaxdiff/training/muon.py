"""Muon: an optimizer for matrices, which needs fewer examples than Adam."""

import dataclasses
import math
from typing import Any

import jax
import optax
from optax import contrib

from jaxdiff.errors import between, positive
from jaxdiff.training.optimizer import Constant, Schedule
from jaxdiff.typing import Params

KERNEL = "kernel"
PER_HEAD = ("query_key_value", "query", "key_value")
"""Layers whose kernels [channels, count, heads, head_dim] count as one matrix per head and projection.

As a single matrix, the gradients of the values, which are large from the start, would dominate queries and keys."""


@dataclasses.dataclass(frozen=True)
class Muon:
    """Muon: orthogonalised momentum for the kernels of layers (Jordan et al. 2024); Adam for all other parameters.

    Both use Nesterov momentum, Adam in the form of Dozat 2016. A kernel counts as the matrix whose columns are its last
    axis; projections to heads count as several matrices (`PER_HEAD`). Updates of kernels are scaled to the root mean
    square of Adam's, so that learning rates of `AdamW` fit (Liu et al. 2025, "Muon is Scalable for LLM Training",
    equation 4). A step costs a few products of matrices of the kernels' sizes more than Adam's, for any batch size.

    Attributes:
      learning_rate, schedule: as in `AdamW`.
      beta: decay of the momentum of kernels, in [0, 1).
      b1, b2, eps: parameters of Adam.
      weight_decay: decoupled weight decay of kernels.
      iterations: number of Newton-Schulz iterations, which orthogonalise the momentum.
      clip_norm, frozen: as in `AdamW`.
    """

    learning_rate: float = 1e-3
    schedule: Schedule = Constant()
    beta: float = 0.95
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    iterations: int = 5
    clip_norm: float | None = 1.0
    frozen: tuple[str, ...] = ()

    def __post_init__(self):
        positive(self, "learning_rate", "eps", "iterations", "clip_norm")
        for decay in ("beta", "b1", "b2"):
            between(self, decay, 0, 1, open_high=True)
        between(self, "weight_decay", 0, math.inf)

    def make(self, total_steps: int) -> optax.GradientTransformation:
        """The optimizer of a run of `total_steps`."""
        muon = contrib.muon(
            self.schedule(self.learning_rate, total_steps),
            ns_steps=self.iterations,
            beta=self.beta,
            eps=self.eps,
            weight_decay=self.weight_decay,
            adam_b1=self.b1,
            adam_b2=self.b2,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
        )
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        return optax.chain(*clip, muon)


def _matrices(params: Params) -> Any:
    """The axes of each kernel that are its rows and its columns; None for other parameters."""

    def matrix(path: Any, leaf: Any) -> contrib.MuonDimensionNumbers | None:
        names = {getattr(key, "key", None) for key in path}
        if leaf.ndim < 2 or KERNEL not in names:
            return None
        if names.intersection(PER_HEAD):
            return contrib.MuonDimensionNumbers(0, leaf.ndim - 1)
        return contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree.map_with_path(matrix, params)
