"""Cost of an experiment: parameters, multiply-adds, memory and time, from shapes alone.

Nothing is compiled, and no array of the model's size is allocated. The network is traced three times: to initialise
it, to run it, and to train it.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr
from jax.sharding import Mesh

from jaxdiff.cost import memory
from jaxdiff.cost.chips import CHIPS, Chip, chip_of
from jaxdiff.cost.fixes import fixes
from jaxdiff.cost.operations import Operations, count
from jaxdiff.cost.sampling import evaluations
from jaxdiff.distributed import partitioning
from jaxdiff.distributed.mesh import REST, MeshShape, batch_ways
from jaxdiff.errors import expect
from jaxdiff.experiment import Experiment
from jaxdiff.sampling.protocols import Encoded
from jaxdiff.training.state import abstract_params, abstract_state
from jaxdiff.training.step import Context, Frozen
from jaxdiff.trees import merge


def estimate(
    experiment: Experiment, chip: str = "h200", devices: int | None = None, utilisation: float = 0.4
) -> dict[str, Any]:
    """Estimate the cost of an experiment, the figures of `jaxdiff.plan`; docs/plan.md describes each.

    Args:
      experiment: the experiment. Its data are not opened.
      chip: one of `jaxdiff.cost.chips.CHIPS`.
      devices: number of devices; None for the fewest that the mesh allows.
      utilisation: fraction of the chip's peak rate that matrix products reach, in (0, 1].

    Returns:
      Plain numbers, strings, lists and dicts, which JSON can hold.

    Raises:
      UserError: the chip is unknown, `utilisation` is out of range, or sizes do not divide.
    """
    has, task = chip_of(chip), _without_files(experiment)
    expected, fix = "a fraction of the peak in (0, 1]", "give one, such as 0.4"
    expect(0 < utilisation <= 1, "--utilisation", utilisation, expected, fix)
    mesh = mesh_of(experiment.mesh, devices)
    rows, accumulation = _rows(experiment, mesh), experiment.accumulation
    optimizer, untrained = experiment.optimizer.make(experiment.steps), experiment.optimizer.frozen
    state: Any = abstract_state(task, optimizer, mesh, experiment.ema.count, untrained)
    own, rest = abstract_params(task, mesh, untrained)
    networks = task.frozen_shapes()
    trained, frozen = _shapes(own), Frozen(networks, _shapes(rest))
    model = merge(trained, frozen.params)
    params = jax.eval_shape(task.full_params, model, networks)

    encode, denoise, conditions = _forward(task, params)
    backward, examples = _training(task, trained, frozen, rows)
    draw, decode = _drawing(task, model, frozen, accumulation * rows), _decoding(task, networks)
    # The tensor axis splits channels and heads, and so the activations; what XLA gathers is not counted.
    ways = mesh.shape["tensor"]
    kept = memory.of_step(
        state,
        accumulation * examples,
        memory.live_bytes(backward) // ways,
        accumulation,
        frozen=(rest, _sharded(networks, mesh)),
        drawing=memory.live_bytes(draw) // ways,
    )
    training = _sum((accumulation, count(backward)), (1, count(draw)))
    calls = evaluations(experiment.recipe, _process(task.denoiser), task.data_shape, conditions)
    sampling = _sum(
        (2, count(encode)),  # the conditional and the unconditional embeddings
        (calls.calls * calls.model, count(denoise)),
        (calls.calls, calls.other),
        (1, count(decode)),
    )
    drawn = memory.of_sample(
        {"model": params, **{name: networks[name] for name in task.codec.frozen}},
        (2, encode), (math.ceil(calls.model), denoise), (1, decode),
    )  # fmt: skip
    forward = _sum((1, count(encode)), (1, count(denoise)))
    image = _seconds(training, has) / (accumulation * rows) / utilisation  # seconds per image on one device
    step = image * experiment.batch_size / mesh.size
    hours = step * experiment.steps / 3600
    return {
        "parameters": _size(model),
        "parameter_bytes": memory.tree_bytes(model),
        "frozen_parameters": {name: _size(networks[name]) for name in sorted(networks)},
        "multiply_adds": forward.total,
        "training_multiply_adds": round(training.total / (accumulation * rows)),
        "sampling_multiply_adds": sampling.total,
        "memory_bytes": kept.total,
        "hours": hours,
        "device_hours": hours * mesh.size,
        "step_seconds": step,
        "sampling_seconds": _seconds(sampling, has) / utilisation,
        "sampling_memory_bytes": drawn,
        "sampling_fits": drawn <= has.memory,
        "chip": chip,
        "chip_memory_bytes": has.memory,
        "fits": kept.total <= has.memory,
        "fits_on": [name for name, each in CHIPS.items() if kept.total <= each.memory],
        "devices": mesh.size,
        "utilisation": utilisation,
        "steps": experiment.steps,
        "batch_size": experiment.batch_size,
        "accumulation": accumulation,
        "parts": parts(model),
        "multiply_adds_by_type": dict(forward.by_dtype),
        "constant_multiply_adds": forward.constant,
        "sampling": {
            "calls": calls.calls,
            "evaluations": calls.model,
            "guiding_model_evaluations": calls.guiding_model,
        },
        "memory": dataclasses.asdict(kept),
        "mesh": dict(mesh.shape),
        "fix": [] if kept.total <= has.memory else fixes(experiment, mesh, kept, has.memory, rows),
    }


def mesh_of(shape: MeshShape, devices: int | None = None) -> Mesh:
    """A mesh of devices that need not exist, for shapes only.

    Args:
      shape: sizes of the axes.
      devices: number of devices; None for the fewest that `shape` allows.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    if devices is None:
        devices = math.prod(size for size in dataclasses.astuple(shape) if size != REST)
    expect(devices >= 1, "--devices", devices, "a number >= 1", "give at least 1")
    return shape.make(jax.devices("cpu")[:1] * devices)  # one device stands in for all


def parts(params: Any) -> dict[str, int]:
    """Number of parameters by part: modules of the denoiser and their blocks; numbered blocks are summed."""
    found: collections.Counter[str] = collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [str(getattr(key, "key", key)) for key in path]
        block = re.sub(r"(_block)?_\d+$", "", names[1].removeprefix("parts_")) if len(names) > 2 else ""
        found[f"{names[0]}.{block}" if block else names[0]] += math.prod(leaf.shape)
    return dict(sorted(found.items()))


def _without_files(experiment: Experiment) -> Any:
    """The task, which reads no files."""
    return experiment.sampled.for_shapes()


def _rows(experiment: Experiment, mesh: Mesh) -> int:
    """Examples of a micro-batch on one device."""
    ways = batch_ways(mesh) * experiment.accumulation
    below, above = experiment.batch_size // ways * ways, -(-experiment.batch_size // ways) * ways
    expected = f"a multiple of {ways} for {mesh.size} devices with accumulation={experiment.accumulation}"
    fix = f"use {below} or {above}" if below else f"use {above}"
    expect(below == above, "config.batch_size", experiment.batch_size, expected, fix)
    return experiment.batch_size // ways


def _forward(task: Any, params: Any) -> tuple[ClosedJaxpr, ClosedJaxpr, Callable[[], dict[str, Encoded]]]:
    """`encode` and `predict_encoded` for one image; a function that returns its conditions in a trace."""
    denoiser = task.denoiser
    fields = jax.eval_shape(lambda: denoiser.conditioner.example(1, task.data_shape))
    drop = jax.eval_shape(lambda: denoiser.conditioner.none_dropped(1))
    x, t = jax.ShapeDtypeStruct((1, *task.data_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    trees = []  # embeddings hold arrays, not shapes: they are flattened between traces

    def encode(params: Any, fields: Any, drop: Any) -> list[Any]:
        leaves, tree = jax.tree.flatten(denoiser.apply({"params": params}, fields, drop, method="encode"))
        trees.append(tree)
        return leaves

    def denoise(params: Any, x: Any, t: Any, leaves: Any) -> Any:
        encoded = jax.tree.unflatten(trees[0], leaves)
        return denoiser.apply({"params": params}, x, t, encoded, method="predict_encoded")

    encoding, leaves = jax.make_jaxpr(encode, return_shape=True)(params, fields, drop)
    denoising = jax.make_jaxpr(denoise)(params, x, t, leaves)

    def conditions() -> dict[str, Encoded]:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (leaves, fields, drop))
        encoded = jax.tree.unflatten(trees[0], zeros[0])
        return {
            name: Encoded([encoded[name]], [encoded[name]], zeros[1][name], zeros[2][name])
            for name in encoded
        }

    return encoding, denoising, conditions


def _training(task: Any, params: Any, frozen: Frozen, rows: int) -> tuple[ClosedJaxpr, int]:
    """The program of a micro-batch of `rows` examples, forward and backward, and the bytes of its examples."""
    inputs = _draw_inputs(task, merge(params, frozen.params), frozen, rows)
    examples, (batch, context, key) = jax.eval_shape(task.draw, *inputs), inputs

    def mean(params: Any, context: Context, rest: Any, examples: Any, key: Any) -> Any:
        return jnp.mean(task.loss(merge(params, rest), context, examples, key=key, train=True)[0])

    program = jax.make_jaxpr(jax.grad(mean))(params, context, frozen.params, examples, key)
    return program, memory.tree_bytes((batch, examples))


def _drawing(task: Any, params: Any, frozen: Frozen, rows: int) -> ClosedJaxpr:
    """The program that draws `rows` examples."""
    return jax.make_jaxpr(task.draw)(*_draw_inputs(task, params, frozen, rows))


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


def _sharded(tree: Any, mesh: Mesh) -> Any:
    """Shapes with the shardings of frozen networks."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        partitioning.shardings(tree, mesh),
    )


def _size(tree: Any) -> int:
    """Number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _process(denoiser: Any) -> Any:
    """The forward process, with initial parameters if it is learned."""
    process = denoiser.process
    return process.init_with_output(jax.random.key(0))[0] if isinstance(process, nn.Module) else process


def _sum(*terms: tuple[int | float, Operations]) -> Operations:
    tally: collections.Counter[str] = collections.Counter()
    for factor, operations in terms:
        tally.update({name: round(factor * number) for name, number in operations.by_dtype.items()})
    return Operations(tally, round(sum(factor * operations.constant for factor, operations in terms)))


def _seconds(operations: Operations, chip: Chip) -> float:
    """Seconds on one device at its peak rate."""
    return sum(2 * n / chip.flops.get(name, chip.flops["float32"]) for name, n in operations.by_dtype.items())
