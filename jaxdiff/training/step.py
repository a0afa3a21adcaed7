"""One training step, for every task: what is trained comes in through the `Task` protocol.

Everything random in step n follows from ``fold_in(key(seed), n)``, and is drawn for the whole batch before it
is cut into micro-batches or spread over devices: neither changes what is learned.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh

from jaxdiff.distributed import partitioning
from jaxdiff.training.ema import EmaProfile
from jaxdiff.typing import Metrics, Params

INITIAL = 2**32 - 1
"""The step whose key initialises the parameters: one that no run reaches."""


@struct.dataclass
class TrainState:
    """All that a run has learned. Keys and functions are not: they follow from the config and the step.

    `task_state` is what the task keeps from step to step besides parameters, such as a history of losses.
    `extra_emas` are averages of other lengths than that of `ema`.
    """

    step: Any
    params: Any
    ema: Any
    opt_state: Any
    task_state: Any = ()
    extra_emas: Any = ()


@runtime_checkable
class Task(Protocol):
    """What is trained."""

    def init(self, key: Any) -> Params:
        """Fresh parameters; those with named axes are boxed (`nn.with_logical_partitioning`)."""
        ...

    def init_task_state(self) -> Any:
        """What is remembered before the first step: a tree of arrays, `()` for nothing."""
        ...

    def draw(self, batch: Any, task_state: Any, key: Any) -> Any:
        """The batch with all that is random about its examples. Every array keeps a leading batch axis."""
        ...

    def loss(self, params: Params, examples: Any, key: Any, train: bool) -> tuple[Any, Metrics]:
        """The loss of each example [batch], and means to log. `key` is for the network (dropout)."""
        ...

    def update_task_state(self, task_state: Any, examples: Any, losses: Any) -> Any:
        """The memory after a step on these examples, whose losses are in the order of the batch."""
        ...


StepFn = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def make_train_step(
    task: Task, optimizer: optax.GradientTransformation, ema: EmaProfile, seed: int, accumulation: int = 1
) -> StepFn:
    """The function (state, batch) -> (state, metrics) of one optimizer step.

    The gradient is the mean over `accumulation` micro-batches of every k-th example each. An update with a
    non-finite loss, gradient or result is not made: parameters, average, optimizer and memory stay as they were,
    only the step counts, and the metric `skipped` is 1. The decision is taken on the device, and so by all hosts
    alike.
    """

    def gradients(params: Params, examples: Any, key: Any) -> tuple[tuple[Metrics, Params], Any]:
        def mean_loss(params: Params) -> tuple[Any, tuple[Any, Metrics]]:
            losses, metrics = task.loss(params, examples, key=key, train=True)
            return jnp.mean(losses), (losses, metrics)

        (mean, (losses, metrics)), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
        return ({**metrics, "loss": mean}, grads), losses

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        draw_key, loss_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        examples = task.draw(batch, state.task_state, key=draw_key)
        (metrics, grads), losses = accumulate(gradients, accumulation)(state.params, examples, loss_key)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        task_state = task.update_task_state(state.task_state, examples, losses)
        pairs = zip(ema.extra_emas(), state.extra_emas, strict=True)
        extra_emas = tuple(other.update(average, params, state.step) for other, average in pairs)
        proposed = (params, ema.update(state.ema, params, state.step), opt_state, task_state, extra_emas)

        grad_norm, param_norm = optax.tree.norm(grads), optax.tree.norm(params)
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm) & jnp.isfinite(param_norm)
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), proposed,
                            (state.params, state.ema, state.opt_state, state.task_state, state.extra_emas))  # fmt: skip
        metrics |= {
            "grad_norm": grad_norm,
            "update_norm": optax.tree.norm(updates),
            "param_norm": param_norm,
            "skipped": 1.0 - good,
        }
        return TrainState(state.step + 1, *kept), metrics

    return train_step


def accumulate(function: Callable[..., tuple[Any, Any]], parts: int) -> Callable[..., tuple[Any, Any]]:
    """`function(params, examples, key) -> (means, rows)` over `parts` micro-batches, one in memory at a time.

    The means are averaged; the rows, which have a leading batch axis, come back in the order of the batch.
    Micro-batch i takes the examples i, i + k, i + 2k, ...: each device cuts its own part of the batch, and
    none moves.
    """

    def whole(params: Params, examples: Any, key: Any) -> tuple[Any, Any]:
        if parts == 1:
            return function(params, examples, jax.random.fold_in(key, 0))
        cut = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), examples)

        def add(total: Any, part: tuple[Any, Any]) -> tuple[Any, Any]:
            index, micro = part
            means, rows = function(params, micro, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, means), rows

        shape, _ = jax.eval_shape(function, params, jax.tree.map(lambda x: x[0], cut), key)
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
        total, rows = jax.lax.scan(add, zero, (jnp.arange(parts), cut))
        means = jax.tree.map(lambda x: x / parts, total)
        return means, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), rows)

    return whole


def jit_train_step(step: StepFn, abstract: TrainState, mesh: Mesh) -> Any:
    """`step`, to be compiled for a mesh; it takes over the memory of the state that it is given."""
    state = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    batch, metrics = partitioning.batch_sharding(mesh), partitioning.replicated(mesh)
    return jax.jit(step, in_shardings=(state, batch), out_shardings=(state, metrics), donate_argnums=0)


def create_state(
    task: Task, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int, extra_emas: int = 0
) -> TrainState:
    """The state at step 0, made in its place on the mesh: no device ever holds all of a sharded state.

    `extra_emas` is the number of averages besides the one that samples are drawn with.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(task, optimizer, mesh, extra_emas))
    return jax.jit(
        lambda: nn.meta.unbox(_initial(task, optimizer, seed, extra_emas)), out_shardings=shardings
    )()


def abstract_state(
    task: Task, optimizer: optax.GradientTransformation, mesh: Mesh, extra_emas: int = 0
) -> TrainState:
    """The shapes, types and shardings of the state, as `jax.ShapeDtypeStruct`s; nothing is computed."""
    boxed = jax.eval_shape(lambda: _initial(task, optimizer, 0, extra_emas))
    everywhere = jax.tree.map(lambda leaf: partitioning.replicated(mesh), boxed.task_state)
    shardings = partitioning.shardings(boxed, mesh).replace(task_state=everywhere)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nn.meta.unbox(boxed), shardings,
    )  # fmt: skip


def begin(
    task: Task, optimizer: optax.GradientTransformation, params: Params, extra_emas: int = 0
) -> TrainState:
    """The state at step 0 of a run that starts from these parameters."""
    # averages start as copies: the step takes over the memory of all
    average, *more = (jax.tree.map(jnp.copy, params) for _ in range(1 + extra_emas))
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, params, average, optimizer.init(params), task.init_task_state(), tuple(more))


def _initial(task: Task, optimizer: optax.GradientTransformation, seed: int, extra_emas: int) -> TrainState:
    return begin(task, optimizer, task.init(jax.random.fold_in(jax.random.key(seed), INITIAL)), extra_emas)
