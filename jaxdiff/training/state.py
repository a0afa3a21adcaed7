"""The state of training at step 0, concrete or as shapes, laid out on a mesh."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from jaxdiff.distributed import partitioning
from jaxdiff.training.partition import split
from jaxdiff.training.rounding import widened
from jaxdiff.training.spikes import no_losses
from jaxdiff.training.step import Task, TrainState
from jaxdiff.typing import Params

INITIAL = 2**32 - 1
"""The step whose key initialises the parameters: one that no run reaches."""


def init_params(task: Task, seed: int) -> Params:
    """Initial parameters of a run with this seed, boxed as the task boxes them, untrained ones included."""
    return task.init(jax.random.fold_in(jax.random.key(seed), INITIAL))


def create_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    emas: int = 1,
    untrained: Sequence[str] = (),
    abstract: TrainState | None = None,
    recent_losses: int = 0,
) -> TrainState:
    """The state at step 0, created sharded: no device ever holds all of a sharded state.

    Args:
      emas: number of averages, the one for samples first; 0 for none, see `EmaProfile.count`.
      untrained: patterns of parameters that are not trained, which the state leaves out.
      abstract: the result of `abstract_state` for the same arguments, if it is known: tracing takes seconds.
      recent_losses: number of losses that the state keeps, see `TrainState.recent_losses`.
    """
    abstract = abstract or abstract_state(task, optimizer, mesh, emas, untrained, recent_losses)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def make() -> TrainState:
        trained, _ = split(init_params(task, seed), untrained)
        return nn.meta.unbox(begin(task, optimizer, trained, emas, recent_losses))

    return jax.jit(make, out_shardings=shardings)()


def untrained_params(task: Task, mesh: Mesh, seed: int, untrained: Sequence[str]) -> Params:
    """The initial values of the parameters that are not trained, on the mesh; an empty dict for none."""
    if not untrained:
        return {}
    abstract = abstract_params(task, mesh, untrained)[1]
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    make = lambda: nn.meta.unbox(split(init_params(task, seed), untrained)[1])  # noqa: E731
    return jax.jit(make, out_shardings=shardings)()


def abstract_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    emas: int = 1,
    untrained: Sequence[str] = (),
    recent_losses: int = 0,
) -> TrainState:
    """The shapes, types and shardings of the state, as `jax.ShapeDtypeStruct`s; nothing is computed."""

    def make() -> TrainState:
        trained, _ = split(init_params(task, 0), untrained)
        return begin(task, optimizer, trained, emas, recent_losses)

    boxed = jax.eval_shape(make)
    everywhere = jax.tree.map(lambda leaf: partitioning.replicated(mesh), boxed.task_state)
    shardings = partitioning.shardings(boxed, mesh).replace(task_state=everywhere)
    return _abstract(boxed, shardings)


def abstract_params(task: Task, mesh: Mesh, untrained: Sequence[str] = ()) -> tuple[Params, Params]:
    """The shapes, types and shardings of the trained and of the untrained parameters."""
    parts = split(jax.eval_shape(lambda: init_params(task, 0)), untrained)
    trained, rest = (_abstract(part, partitioning.shardings(part, mesh)) for part in parts)
    return trained, rest


def begin(
    task: Task,
    optimizer: optax.GradientTransformation,
    params: Params,
    emas: int = 1,
    recent_losses: int = 0,
) -> TrainState:
    """The state at step 0 of a run that starts from these trained parameters."""
    # EMAs start as copies, since the step donates every array of the state.
    averages = [jax.tree.map(jnp.copy, params) for _ in range(emas)]
    ema, step = averages[0] if averages else (), jnp.zeros((), jnp.int32)
    opt_state = optimizer.init(
        widened(params)
    )  # float32: averages of squares in half precision would stand still
    recent = no_losses(recent_losses) if recent_losses else ()
    return TrainState(step, params, ema, opt_state, task.init_task_state(), tuple(averages[1:]), recent)


def _abstract(boxed: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nn.meta.unbox(boxed),
        shardings,
    )
