"""Muon: an optimizer for matrices, which learns more of each example than Adam does."""

import dataclasses
from typing import Any

import jax
import optax
from optax import contrib

from jaxdiff.errors import require
from jaxdiff.training.optimizer import Constant, Schedule
from jaxdiff.typing import Params

KERNEL = "kernel"
PER_HEAD = ("query_key_value", "query", "key_value")
"""Layers whose kernels are [channels, count, heads, head_dim]: a matrix for each head of each projection. As one matrix
the gradients of values, which are large from the start, would leave nothing to queries and keys."""


@dataclasses.dataclass(frozen=True)
class Muon:
    """Momentum, made orthogonal, for the kernels of layers (Jordan et al. 2024, "Muon"); Adam for all else.

    Both with Nesterov's look ahead, for Adam that of Dozat 2016. A kernel counts as the matrix whose columns are its
    last axis, projections to heads as many matrices (`PER_HEAD`). Its updates are scaled to the root mean square that
    Adam's have, so that rates of `AdamW` fit (Liu et al. 2025, "Muon is Scalable for LLM Training", equation 4). A step
    costs more than Adam's, by some products of matrices as large as the kernels, whatever the batch.

    Attributes:
      learning_rate, schedule: as in `AdamW`.
      beta: decay of the momentum of kernels.
      b1, b2, eps: of Adam.
      weight_decay: of kernels, decoupled.
      iterations: of Newton and Schulz, which make the momentum orthogonal.
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
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "nothing would move", "use > 0")
        for name in ("beta", "b1", "b2"):
            decay = getattr(self, name)
            require(0.0 <= decay < 1.0, name, decay, "it is the decay of an average", "use [0, 1)")
        require(self.eps > 0, "eps", self.eps, "it keeps a division finite", "use > 0, as 1e-8")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "weights would grow", "use >= 0")
        require(self.iterations > 0, "iterations", self.iterations, "nothing is made orthogonal", "use 5")
        clips = self.clip_norm is None or self.clip_norm > 0
        require(clips, "clip_norm", self.clip_norm, "nothing would be left", "use > 0, or None for none")

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
        whole = optax.chain(*clip, muon)
        return whole


def _matrices(params: Params) -> Any:
    """Which axes of each kernel are a row; None for parameters that are no kernels."""

    def matrix(path: Any, leaf: Any) -> contrib.MuonDimensionNumbers | None:
        names = {getattr(key, "key", None) for key in path}
        if leaf.ndim < 2 or KERNEL not in names:
            return None
        if names.intersection(PER_HEAD):
            return contrib.MuonDimensionNumbers(0, leaf.ndim - 1)
        return contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree.map_with_path(matrix, params)
