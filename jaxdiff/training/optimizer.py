"""Optimizers and learning-rate schedules as config blocks.

Rates count optimizer steps: neither the number of devices nor gradient accumulation changes them.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from jaxdiff.errors import require
from jaxdiff.typing import Params


@runtime_checkable
class Schedule(Protocol):
    """How the learning rate moves below its peak during a run."""

    def __call__(self, peak: float, total_steps: int) -> optax.Schedule: ...


def _warmup(step: Any, warmup_steps: int) -> Any:
    """The share of the peak that is reached: linear, and positive at the first step already."""
    return jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1))


@dataclasses.dataclass(frozen=True)
class Constant:
    """The peak, after `warmup_steps` of linear increase."""

    warmup_steps: int = 0

    def __post_init__(self):
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "it counts steps", "use 0 or more")

    def __call__(self, peak: float, total_steps: int) -> optax.Schedule:
        return lambda step: peak * _warmup(step, self.warmup_steps)


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Half a cosine from the peak to `final` of it (Loshchilov & Hutter 2017, eq. 5), after a warm-up."""

    warmup_steps: int = 0
    final: float = 0.0

    def __post_init__(self):
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "it counts steps", "use 0 or more")
        require(0.0 <= self.final <= 1.0, "final", self.final, "it is a share of the peak", "use 0 to 1")

    def __call__(self, peak: float, total_steps: int) -> optax.Schedule:
        require(
            self.warmup_steps < total_steps, "warmup_steps", self.warmup_steps,
            f"the warm-up fills all {total_steps} steps", "choose fewer, or train longer",
        )  # fmt: skip

        def rate(step: Any) -> Any:
            progress = jnp.clip((step - self.warmup_steps) / (total_steps - self.warmup_steps), 0.0, 1.0)
            share = self.final + (1.0 - self.final) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
            return peak * _warmup(step, self.warmup_steps) * share

        return rate


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

    Only arrays of two axes or more decay: biases, gains of norms and the frequencies of embeddings are no weights.
    `clip_norm` bounds the global norm of the gradient first; None leaves it alone.
    """

    learning_rate: float = 1e-4
    schedule: Schedule = Constant()
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0

    def __post_init__(self):
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "nothing would move", "use > 0")
        for name, decay in (("b1", self.b1), ("b2", self.b2)):
            require(0.0 <= decay < 1.0, name, decay, "it is the decay of an average", "use [0, 1)")
        require(self.eps > 0, "eps", self.eps, "it keeps a division finite", "use > 0, as 1e-8")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "weights would grow", "use >= 0")
        clips = self.clip_norm is None or self.clip_norm > 0
        require(clips, "clip_norm", self.clip_norm, "nothing would be left", "use > 0, or None for none")

    def make(self, total_steps: int) -> optax.GradientTransformation:
        """The optimizer of a run of `total_steps`."""
        rate = self.schedule(self.learning_rate, total_steps)
        adamw = optax.adamw(
            rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=_are_weights
        )
        return (
            adamw if self.clip_norm is None else optax.chain(optax.clip_by_global_norm(self.clip_norm), adamw)
        )


def _are_weights(params: Params) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
