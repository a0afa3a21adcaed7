"""One training step, for every task: what is trained comes in through the `Task` protocol.

Everything random in step n follows from ``fold_in(key(seed), n)``. It is drawn for the global batch before
accumulation or sharding splits the batch, so neither changes what is learned.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from jaxdiff.distributed import partitioning
from jaxdiff.errors import expect
from jaxdiff.training.ema import EmaProfile
from jaxdiff.training.fault_tolerance import Spikes
from jaxdiff.training.rounding import rounded, wide, widened
from jaxdiff.training.spikes import appended, is_spike
from jaxdiff.trees import merge
from jaxdiff.typing import Metrics, Params, Weights


@struct.dataclass
class TrainState:
    """Everything that a run has learned. Keys and functions follow from the config and the step.

    Attributes:
      step: optimizer steps so far.
      params, ema, opt_state: trained parameters only. An `ema` without arrays means that there is no average.
      task_state: state of the task other than parameters, such as a history of losses.
      extra_emas: EMAs of other lengths than that of `ema`.
      recent_losses: the last losses, with which a run compares spikes that it skips, see `training.spikes`.
    """

    step: Any
    params: Any
    ema: Any
    opt_state: Any
    task_state: Any = ()
    extra_emas: Any = ()
    recent_losses: Any = ()

    @property
    def sampled(self) -> Any:
        """The trained parameters for samples: their average, or else themselves."""
        return self.ema if jax.tree.leaves(self.ema) else self.params


@struct.dataclass
class Frozen:
    """Arrays that a run uses and does not train: an argument of the compiled step, in no checkpoint and no EMA.

    Attributes:
      networks: trees of parameters by the names in `Task.frozen`.
      params: the untrained part of the task's own parameters, see `training.partition`.
    """

    networks: Any = struct.field(default_factory=dict)
    params: Any = struct.field(default_factory=dict)


@struct.dataclass
class Context:
    """Inputs of a task in addition to its trained parameters.

    Attributes:
      step: optimizer steps so far.
      ema: the EMA of all parameters, untrained ones included.
      frozen: trees of parameters by the names in `Task.frozen`.
      task_state: what the task keeps from step to step.
    """

    step: Any = 0
    ema: Any = None
    frozen: Any = struct.field(default_factory=dict)
    task_state: Any = ()


@runtime_checkable
class Task(Protocol):
    """What the engine trains."""

    @property
    def frozen(self) -> Mapping[str, Weights]:
        """Networks that are used and not trained, by name."""
        ...

    def check(self, example: Mapping[str, Any], num_classes: int | None) -> None:
        """Raise `UserError` unless the task can train on such examples, before anything is compiled."""
        ...

    def init(self, key: Any) -> Params:
        """Initial parameters; those with named axes are boxed (`nn.with_logical_partitioning`)."""
        ...

    def init_task_state(self) -> Any:
        """The task state before the first step: a tree of arrays, `()` for none."""
        ...

    def draw(self, batch: Any, context: Context, key: Any) -> Any:
        """The examples of a batch with everything random about them. Every array keeps a leading batch axis."""
        ...

    def loss(
        self, params: Params, context: Context, examples: Any, key: Any, train: bool
    ) -> tuple[Any, Metrics]:
        """The loss of each example [batch], and means to log. `key` is for the network (dropout)."""
        ...

    def update_task_state(self, task_state: Any, examples: Any, losses: Any) -> Any:
        """The task state after a step on these examples, whose losses are in the order of the batch."""
        ...


@runtime_checkable
class Coupled(Protocol):
    """A task that says whether the loss of an example depends on the others of its batch."""

    @property
    def couples_examples(self) -> bool: ...


def check_accumulation(task: Task, accumulation: int, field: str = "accumulation") -> None:
    """Raise `UserError` where micro-batches would change the loss of the task."""
    coupled = isinstance(task, Coupled) and task.couples_examples
    kind, fix = type(task).__name__, "use more devices, a smaller batch, or fewer channels"
    expected = f"1, since {kind} compares the examples of a whole batch"
    expect(accumulation == 1 or not coupled, field, accumulation, expected, fix)


StepFn = Callable[[TrainState, Any, Frozen], tuple[TrainState, Metrics]]


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    ema: EmaProfile,
    seed: int,
    accumulation: int = 1,
    skip_spikes: Spikes | None = None,
) -> StepFn:
    """The function (state, batch, frozen) -> (state, metrics) of one optimizer step.

    The gradient is the mean over `accumulation` micro-batches of every k-th example each. An update with a
    non-finite loss, gradient or result is skipped: parameters, EMAs, optimizer and task state stay as they were,
    only the step counts, and the metric `skipped` is 1. The decision is taken on the device, so all hosts agree.
    Spikes of the loss are skipped in the same way, if `skip_spikes` says what they are.
    Parameters and averages in bfloat16 are updated in float32 and rounded stochastically, see `training.rounding`.

    Raises:
      UserError: a loss that compares the examples of a batch, with accumulation.
    """
    check_accumulation(task, accumulation)

    def train_step(state: TrainState, batch: Any, frozen: Frozen) -> tuple[TrainState, Metrics]:
        found = _gradients(task, seed, accumulation, state, batch, frozen)
        metrics, grads = found.metrics, found.grads
        old, grads = widened(state.params), widened(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, old)
        moved = optax.apply_updates(old, updates)
        task_state = task.update_task_state(state.task_state, found.examples, found.losses)
        averages = (state.ema, *state.extra_emas)
        pairs = zip((ema, *ema.extra_emas()), widened(averages), strict=True)
        exact = (moved, *(profile.update(average, moved, state.step) for profile, average in pairs))
        params, average, *extra_emas = rounded(exact, (state.params, *averages), found.rounding_key)
        recent = (
            state.recent_losses if skip_spikes is None else appended(state.recent_losses, metrics["loss"])
        )
        proposed = (params, average, opt_state, task_state, tuple(extra_emas), recent)

        grad_norm, param_norm = optax.tree.norm(grads), optax.tree.norm(moved)
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm) & jnp.isfinite(param_norm)
        if skip_spikes is not None:
            good &= ~is_spike(state.recent_losses, metrics["loss"], skip_spikes)
        before = (
            state.params,
            state.ema,
            state.opt_state,
            state.task_state,
            state.extra_emas,
            state.recent_losses,
        )
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), proposed, before)
        metrics |= {
            "grad_norm": grad_norm,
            "update_norm": optax.tree.norm(updates),
            "param_norm": param_norm,
            "skipped": 1.0 - good,
        }
        return TrainState(state.step + 1, *kept), metrics

    return train_step


class _Gradients(NamedTuple):
    """What the backward pass of a step gives, and what it was computed from."""

    metrics: Metrics
    grads: Params
    losses: Any
    examples: Any
    rounding_key: Any


def _gradients(
    task: Task, seed: int, accumulation: int, state: TrainState, batch: Any, frozen: Frozen
) -> _Gradients:
    step_key = jax.random.fold_in(jax.random.key(seed), state.step)
    draw_key, loss_key, rounding_key = jax.random.split(step_key, 3)
    context = Context(state.step, merge(state.sampled, frozen.params), frozen.networks, state.task_state)
    examples = task.draw(batch, context, key=draw_key)

    def gradients(params: Params, examples: Any, key: Any) -> tuple[tuple[Metrics, Params], Any]:
        def mean_loss(params: Params) -> tuple[Any, tuple[Any, Metrics]]:
            every = merge(params, frozen.params)
            losses, metrics = task.loss(every, context, examples, key=key, train=True)
            return jnp.mean(losses), (losses, metrics)

        (mean, (losses, metrics)), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
        return ({**metrics, "loss": mean}, grads), losses

    (metrics, grads), losses = accumulate(gradients, accumulation)(state.params, examples, loss_key)
    return _Gradients(metrics, grads, losses, examples, rounding_key)


def make_finiteness_check(task: Task, seed: int, accumulation: int = 1) -> Callable[..., Any]:
    """The function (state, batch, frozen) -> whether each array of a step is finite, as a tree of booleans.

    The arrays are those of the batch, the examples with their draws, the losses, the gradients and the parameters.
    """

    def check(state: TrainState, batch: Any, frozen: Frozen) -> dict[str, Any]:
        found = _gradients(task, seed, accumulation, state, batch, frozen)
        arrays = {
            "batch": batch,
            "examples": found.examples,
            "loss": found.losses,
            "gradient": found.grads,
            "parameters": state.params,
            "frozen": (frozen.networks, frozen.params),
        }
        return jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)) if _is_float(leaf) else True, arrays)

    return check


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def accumulate(function: Callable[..., tuple[Any, Any]], parts: int) -> Callable[..., tuple[Any, Any]]:
    """`function(params, examples, key) -> (means, rows)` over `parts` micro-batches, one in memory at a time.

    The means are averaged. The rows, which have a leading batch axis, are returned in the order of the batch.
    Micro-batch i takes the examples i, i + k, i + 2k, ...: each device cuts its own part of the batch, and
    no example moves.
    """

    def accumulated(params: Params, examples: Any, key: Any) -> tuple[Any, Any]:
        if parts == 1:
            return function(params, examples, jax.random.fold_in(key, 0))
        cut = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), examples)

        def add(total: Any, part: tuple[Any, Any]) -> tuple[Any, Any]:
            index, micro = part
            means, rows = function(params, micro, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, means), rows

        shape, _ = jax.eval_shape(function, params, jax.tree.map(lambda x: x[0], cut), key)
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, wide(leaf.dtype)), shape)
        total, rows = jax.lax.scan(add, zero, (jnp.arange(parts), cut))
        means = jax.tree.map(lambda x: x / parts, total)
        return means, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), rows)

    return accumulated


def jit_train_step(step: StepFn, abstract: TrainState, mesh: Mesh, frozen: Frozen | None = None) -> Any:
    """`step` jitted with shardings; donates its input state. `frozen` gives the shardings of what is not trained."""
    state = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    fixed = jax.tree.map(lambda leaf: leaf.sharding, frozen or Frozen())
    batch, metrics = partitioning.batch_sharding(mesh), partitioning.replicated(mesh)
    return jax.jit(step, in_shardings=(state, batch, fixed), out_shardings=(state, metrics), donate_argnums=0)
