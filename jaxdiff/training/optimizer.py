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


@runtime_checkable
class Optimizer(Protocol):
    """The block of a config that says how parameters move."""

    @property
    def learning_rate(self) -> float: ...

    @property
    def frozen(self) -> tuple[str, ...]: ...

    def make(self, total_steps: int) -> optax.GradientTransformation: ...


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
class InverseSqrt:
    """The peak, and from `decay_steps` on ``peak / sqrt(step / decay_steps)``, after a warm-up.

    Karras et al. 2024, "EDM2": where weights are kept at one length (`AdamW.unit_weights`), the learning rate is their
    relative change, and nothing but a schedule lowers it.
    """

    decay_steps: int
    warmup_steps: int = 0

    def __post_init__(self):
        require(self.decay_steps > 0, "decay_steps", self.decay_steps, "it counts steps", "use 1 or more")
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "it counts steps", "use 0 or more")

    def __call__(self, peak: float, total_steps: int) -> optax.Schedule:
        return lambda step: (
            peak * _warmup(step, self.warmup_steps) / jnp.sqrt(jnp.maximum(step / self.decay_steps, 1.0))
        )


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

    Only arrays of two axes or more decay: biases, gains of norms and the frequencies of embeddings are no weights.
    `clip_norm` bounds the global norm of the gradient first; None leaves it alone.

    `unit_weights` is the name of parameters that are kept at a root mean square of 1 for each output, their last axis:
    ``"weight"`` for the layers of `jaxdiff.models.magnitude`, which is the forced weight normalisation of Karras et al.
    2024 ("EDM2"). None moves all parameters freely.

    `frozen` are patterns of parameters that are not trained, ``"network/encoder_*"``; see `jaxdiff.training.partition`.
    """

    learning_rate: float = 1e-4
    schedule: Schedule = Constant()
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    unit_weights: str | None = None
    frozen: tuple[str, ...] = ()

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
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        unit = [] if self.unit_weights is None else [keep_unit(self.unit_weights)]
        whole = optax.chain(*clip, adamw, *unit) if clip or unit else adamw
        return whole


def keep_unit(name: str) -> optax.GradientTransformation:
    """To come last: the updates that leave parameters of this name with a root mean square of 1 for each output.

    Outputs are the last axis.

    Raises:
      UserError: at `init`, where no parameter has the name.
    """

    def init(params: Params) -> optax.EmptyState:
        paths = [path for path, _ in jax.tree.leaves_with_path(params)]
        found = any(_names(path, name) for path in paths)
        require(found, "unit_weights", name, "no parameter has this name", "give None, or the name of one")
        return optax.EmptyState()

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        def project(path: Any, change: Any, param: Any) -> Any:
            if not _names(path, name):
                return change
            moved = param + change
            square = jnp.mean(jnp.square(moved), axis=range(moved.ndim - 1), keepdims=True)
            return moved * jax.lax.rsqrt(jnp.maximum(square, jnp.finfo(square.dtype).tiny)) - param

        return jax.tree.map_with_path(project, updates, params), state

    return optax.GradientTransformation(init, update)


def _names(path: Any, name: str) -> bool:
    return any(getattr(key, "key", None) == name for key in path)


def _are_weights(params: Params) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
