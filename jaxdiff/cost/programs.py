"""The programs of an experiment, traced from shapes: no file is read, and nothing is compiled."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr
from jax.sharding import Mesh

from jaxdiff.cost import memory
from jaxdiff.distributed import partitioning
from jaxdiff.experiment import Experiment, SampledTask
from jaxdiff.models import reuse as features
from jaxdiff.sampling.protocols import Encoded
from jaxdiff.sampling.reuse import DeepCache
from jaxdiff.training.state import abstract_params, abstract_state
from jaxdiff.training.step import Context, Frozen
from jaxdiff.trees import merge
from jaxdiff.typing import Params


@dataclasses.dataclass(frozen=True)
class Trees:
    """Shapes of all parameters of an experiment.

    Attributes:
      state: of training, with shardings.
      trained: the parameters that are trained.
      untrained: the task's own parameters that are not trained, with shardings.
      networks: frozen networks, by their names in `Task.frozen`.
      sharded: the same with shardings.
      own: the parameters of the task, trained or not.
      params: all parameters of the denoiser.
    """

    state: Any
    trained: Params
    untrained: Params
    networks: Mapping[str, Params]
    sharded: Mapping[str, Params]
    own: Params
    params: Params

    @property
    def frozen(self) -> Frozen:
        """What a training step reads and does not change."""
        return Frozen(self.networks, _shapes(self.untrained))


@dataclasses.dataclass(frozen=True)
class Programs:
    """What is computed in training and in sampling.

    Attributes:
      draw: the draw of the examples of a step, on one device.
      train: a micro-batch on one device, forward and backward.
      examples: bytes of the micro-batch, with its noise and times.
      encode: the conditions of one image to embeddings.
      denoise: one call of the network for one image.
      reusing: a call that reuses features, see `Recipe.reuse`; `denoise` without it.
      decode: the codec's way from one sample of data to an image.
      conditions: a function that returns the encoded conditions, to be called in a trace.
    """

    draw: ClosedJaxpr
    train: ClosedJaxpr
    examples: int
    encode: ClosedJaxpr
    denoise: ClosedJaxpr
    reusing: ClosedJaxpr
    decode: ClosedJaxpr
    conditions: Callable[[], dict[str, Encoded]]


def trees(experiment: Experiment, task: SampledTask, mesh: Mesh) -> Trees:
    """The shapes of all parameters; `task` is the experiment's, and reads no files."""
    optimizer, untrained = experiment.optimizer.make(experiment.steps), experiment.optimizer.frozen
    state = abstract_state(task, optimizer, mesh, experiment.ema.count, untrained)
    own, rest = abstract_params(task, mesh, untrained)
    networks = task.frozen_shapes()
    trained = _shapes(own)
    every = merge(trained, _shapes(rest))
    params = jax.eval_shape(task.full_params, every, networks)
    return Trees(state, trained, rest, networks, sharded(networks, mesh), every, params)


def sharded(tree: Any, mesh: Mesh) -> Any:
    """Shapes of parameters with the shardings of frozen networks, see `jaxdiff.runs.weights.placed`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        partitioning.shardings(tree, mesh),
    )


def trace(
    task: SampledTask, shapes: Trees, rows: int, accumulation: int, reuse: DeepCache | None = None
) -> Programs:
    """The programs with micro-batches of `rows` examples on a device, and the `reuse` of a recipe."""
    encode, denoise, reusing, conditions = _forward(task, shapes.params, reuse)
    train, examples = _training(task, shapes.trained, shapes.frozen, rows)
    draw = jax.make_jaxpr(task.draw)(*_draw_inputs(task, shapes.own, shapes.frozen, accumulation * rows))
    decode = _decoding(task, shapes.networks)
    return Programs(draw, train, examples, encode, denoise, reusing, decode, conditions)


def _forward(
    task: Any, params: Any, reuse: DeepCache | None
) -> tuple[ClosedJaxpr, ClosedJaxpr, ClosedJaxpr, Callable[[], dict[str, Encoded]]]:
    """`encode` and `predict_encoded` for one image, whole and reusing; a function that returns its conditions."""
    denoiser = task.denoiser
    fields = jax.eval_shape(lambda: denoiser.conditioner.example(1, task.data_shape))
    drop = jax.eval_shape(lambda: denoiser.conditioner.none_dropped(1))
    x, t = jax.ShapeDtypeStruct((1, *task.data_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    trees = []  # embeddings hold arrays, not shapes: they are flattened between traces

    def encode(params: Any, fields: Any, drop: Any) -> list[Any]:
        leaves, tree = jax.tree.flatten(denoiser.apply({"params": params}, fields, drop, method="encode"))
        trees.append(tree)
        return leaves

    def denoise(params: Any, cache: Any, x: Any, t: Any, leaves: Any, mutable: Any = False) -> Any:
        encoded, variables = jax.tree.unflatten(trees[0], leaves), {"params": params, **cache}
        return denoiser.apply(variables, x, t, encoded, method="predict_encoded", mutable=mutable)

    encoding, leaves = jax.make_jaxpr(encode, return_shape=True)(params, fields, drop)
    denoising = reusing = jax.make_jaxpr(denoise)(params, {}, x, t, leaves)
    if reuse is not None:
        features.check(denoiser.network, reuse.blocks)
        keep = functools.partial(denoise, mutable=[features.COLLECTION])
        made = jax.eval_shape(keep, params, {}, x, t, leaves)[1][features.COLLECTION]["network"]
        cache = {features.COLLECTION: {"network": features.kept(made, reuse.blocks)}}
        reusing = jax.make_jaxpr(denoise)(params, cache, x, t, leaves)

    def conditions() -> dict[str, Encoded]:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (leaves, fields, drop))
        encoded = jax.tree.unflatten(trees[0], zeros[0])
        own = denoiser.conditioner.conditions
        return {
            name: Encoded([each], [each], own[name].unaugmented(zeros[1][name]), zeros[2][name])
            for name, each in encoded.items()
        }

    return encoding, denoising, reusing, conditions


def _training(task: Any, params: Any, frozen: Frozen, rows: int) -> tuple[ClosedJaxpr, int]:
    """The program of a micro-batch of `rows` examples, forward and backward, and the bytes of its examples."""
    inputs = _draw_inputs(task, merge(params, frozen.params), frozen, rows)
    examples, (batch, context, key) = jax.eval_shape(task.draw, *inputs), inputs

    def mean(params: Any, context: Context, rest: Any, examples: Any, key: Any) -> Any:
        return jnp.mean(task.loss(merge(params, rest), context, examples, key=key, train=True)[0])

    program = jax.make_jaxpr(jax.grad(mean))(params, context, frozen.params, examples, key)
    return program, memory.tree_bytes((batch, examples))


def _draw_inputs(task: Any, params: Any, frozen: Frozen, rows: int) -> tuple[Any, Context, Any]:
    """The shapes of a batch, a context and a key."""
    batch = jax.eval_shape(lambda: task.stored_example(rows))
    step, state = jax.eval_shape(lambda: jnp.int32(0)), jax.eval_shape(task.init_task_state)
    context = Context(step, params, frozen.networks, state)
    return batch, context, jax.eval_shape(lambda: jax.random.key(0))


def _decoding(task: Any, networks: Any) -> ClosedJaxpr:
    """The program of the codec that makes one sample of data."""
    x_0 = jax.ShapeDtypeStruct((1, *task.data_shape), jnp.float32)
    return jax.make_jaxpr(task.codec.decode)({name: networks[name] for name in task.codec.frozen}, x_0)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
