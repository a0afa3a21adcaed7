"""Optimizers and learning-rate schedules as config blocks.

Rates count optimizer steps: neither the number of devices nor gradient accumulation changes them.
"""

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from jaxdiff.errors import between, expect, positive
from jaxdiff.typing import Params


@runtime_checkable
class Schedule(Protocol):
    """Learning-rate schedule of a run, from the peak rate and the number of steps."""

    def __call__(self, peak: float, total_steps: int) -> optax.Schedule: ...


@runtime_checkable
class Optimizer(Protocol):
    """Optimizer of a config; `frozen` are patterns of parameters that are not trained."""

    @property
    def learning_rate(self) -> float: ...

    @property
    def frozen(self) -> tuple[str, ...]: ...

    def make(self, total_steps: int) -> optax.GradientTransformation: ...


def _warmup(step: Any, warmup_steps: int) -> Any:
    """Fraction of the peak: linear in the step, and above 0 at the first one."""
    return jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1))


@dataclasses.dataclass(frozen=True)
class Constant:
    """Constant learning rate, after `warmup_steps` of linear increase."""

    warmup_steps: int = 0

    def __post_init__(self):
        between(self, "warmup_steps", 0, math.inf)

    def __call__(self, peak: float, total_steps: int) -> optax.Schedule:
        return lambda step: peak * _warmup(step, self.warmup_steps)


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Half a cosine from the peak to the fraction `final` of it (Loshchilov & Hutter 2017, eq. 5), after a warm-up."""

    warmup_steps: int = 0
    final: float = 0.0

    def __post_init__(self):
        between(self, "warmup_steps", 0, math.inf)
        between(self, "final", 0, 1)

    def __call__(self, peak: float, total_steps: int) -> optax.Schedule:
        fewer = f"fewer steps than the run's {total_steps}"
        expect(
            self.warmup_steps < total_steps,
            "config.optimizer.schedule.warmup_steps",
            self.warmup_steps,
            fewer,
            "give fewer, or train longer",
        )

        def rate(step: Any) -> Any:
            progress = jnp.clip((step - self.warmup_steps) / (total_steps - self.warmup_steps), 0.0, 1.0)
            fraction = self.final + (1.0 - self.final) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
            return peak * _warmup(step, self.warmup_steps) * fraction

        return rate


@dataclasses.dataclass(frozen=True)
class InverseSqrt:
    """Constant up to `decay_steps`, then ``peak / sqrt(step / decay_steps)``; a warm-up comes first.

    Karras et al. 2024, "EDM2": for weights of constant norm (`AdamW.unit_weights`), the learning rate is their relative
    change, which only a schedule lowers.
    """

    decay_steps: int
    warmup_steps: int = 0

    def __post_init__(self):
        positive(self, "decay_steps")
        between(self, "warmup_steps", 0, math.inf)

    def __call__(self, peak: float, total_steps: int) -> optax.Schedule:
        return lambda step: (
            peak * _warmup(step, self.warmup_steps) / jnp.sqrt(jnp.maximum(step / self.decay_steps, 1.0))
        )


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

    Only arrays with at least two axes decay: not biases, gains of norms, or frequencies of embeddings.

    Attributes:
      learning_rate: peak rate, per optimizer step.
      schedule: the rate during the run, relative to the peak.
      b1, b2: decays of the averages of the gradient and of its square, in [0, 1).
      eps: added to the square root in the denominator.
      weight_decay: decoupled weight decay.
      clip_norm: bound of the global norm of the gradient; None for no bound.
      unit_weights: name of the parameters that are kept at a root mean square of 1 per output, their last axis; None
        for no such constraint. ``"weight"`` names the layers of `jaxdiff.models.magnitude`: this is the forced weight
        normalisation of Karras et al. 2024 ("EDM2").
      frozen: patterns of parameters that are not trained, such as ``"network/encoder_*"``, see `jaxdiff.trees`;
        ``("*", "!network/stem")`` trains the stem alone.
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
        positive(self, "learning_rate", "eps", "clip_norm")
        for decay in ("b1", "b2"):
            between(self, decay, 0, 1, open_high=True)
        between(self, "weight_decay", 0, math.inf)

    def make(self, total_steps: int) -> optax.GradientTransformation:
        """The optimizer of a run of `total_steps`."""
        rate = self.schedule(self.learning_rate, total_steps)
        adamw = optax.adamw(
            rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=are_weights
        )
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        unit = [] if self.unit_weights is None else [keep_unit(self.unit_weights)]
        return optax.chain(*clip, adamw, *unit) if clip or unit else adamw


def keep_unit(name: str) -> optax.GradientTransformation:
    """Unit weights: updates after which parameters of this name have a root mean square of 1 per output.

    Outputs are the last axis. This transformation must be the last of a chain.

    Raises:
      UserError: at `init`, if no parameter has the name.
    """

    def init(params: Params) -> optax.EmptyState:
        paths = [path for path, _ in jax.tree.leaves_with_path(params)]
        found = any(_names(path, name) for path in paths)
        expect(
            found, "unit_weights", name, "the name of a parameter", "give such a name, or None", "no match"
        )
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


def are_weights(params: Params) -> Any:
    """True for the arrays that decay: those with at least two axes."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
