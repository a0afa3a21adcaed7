"""What an experiment costs: parameters, multiply-adds, memory and time, from shapes alone.

Nothing is compiled and no array of the model's size is made. The network is traced three times: to initialise it, to
run it, and to train it.
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
from jaxdiff.cost.chips import Chip, chip_of
from jaxdiff.cost.operations import Operations, count
from jaxdiff.cost.sampling import evaluations
from jaxdiff.distributed.mesh import REST, MeshShape, batch_ways
from jaxdiff.errors import require
from jaxdiff.experiment import Experiment
from jaxdiff.sampling.protocols import Encoded
from jaxdiff.training.step import abstract_state


def estimate(
    experiment: Experiment, chip: str = "h200", devices: int | None = None, utilisation: float = 0.4
) -> dict[str, Any]:
    """Everything that `jaxdiff.plan` says, as plain numbers; docs/plan.md names them.

    Args:
      experiment: what is planned. Its data are not opened.
      chip: one of `jaxdiff.cost.chips.CHIPS`.
      devices: how many of them; the fewest that the mesh allows if None.
      utilisation: the share of the chip's peak that the matrix products reach, in (0, 1].

    Raises:
      UserError: an unknown chip, a share that is none, or sizes that do not divide.
    """
    has, task = chip_of(chip), experiment.task
    in_range, fix = 0 < utilisation <= 1, "give more than 0 and at most 1"
    require(in_range, "--utilisation", utilisation, "it is a share of the peak", fix)
    mesh = mesh_of(experiment.mesh, devices)
    rows = _rows(experiment, mesh)
    optimizer, others = experiment.optimizer.make(experiment.steps), len(experiment.ema.others())
    state: Any = abstract_state(task, optimizer, mesh, others)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.params)

    encode, denoise, conditions = _forward(task, params)
    backward, examples = _training(task, params, rows)
    # Channels and heads, and so the activations, are split over the tensor axis; what XLA gathers is not seen.
    activations = memory.live_bytes(backward) // mesh.shape["tensor"]
    kept = memory.of_step(state, experiment.accumulation * examples, activations, experiment.accumulation)
    training = count(backward)
    drawing = evaluations(experiment.sampling, _process(task.denoiser), task.image_shape, conditions)
    sampling = _sum(
        (2, encode),  # each condition and its null
        (drawing.calls * drawing.model, denoise),
        (drawing.calls, drawing.other),
    )
    forward = _sum((1, encode), (1, denoise))
    images = _seconds(training, has) / rows / utilisation  # seconds for an image on one device
    step = images * experiment.batch_size / mesh.size
    hours = step * experiment.steps / 3600
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return {
        "parameters": parameters,
        "parameter_bytes": sum(map(memory.array_bytes, jax.tree.leaves(params))),
        "multiply_adds": forward.total,
        "training_multiply_adds": round(training.total / rows),
        "sampling_multiply_adds": sampling.total,
        "memory_bytes": kept.total,
        "hours": hours,
        "device_hours": hours * mesh.size,
        "step_seconds": step,
        "sampling_seconds": _seconds(sampling, has) / utilisation,
        "chip": chip,
        "chip_memory_bytes": has.memory,
        "fits": kept.total <= has.memory,
        "devices": mesh.size,
        "utilisation": utilisation,
        "steps": experiment.steps,
        "batch_size": experiment.batch_size,
        "accumulation": experiment.accumulation,
        "parts": parts(params),
        "multiply_adds_by_type": dict(forward.by_dtype),
        "constant_multiply_adds": forward.constant,
        "sampling": {
            "calls": drawing.calls,
            "evaluations": drawing.model,
            "guide_evaluations": drawing.guide,
        },
        "memory": dataclasses.asdict(kept),
        "mesh": dict(mesh.shape),
        "fix": [] if kept.total <= has.memory else _fixes(experiment, mesh, kept, has, rows),
    }


def mesh_of(shape: MeshShape, devices: int | None = None) -> Mesh:
    """The mesh of devices that need not be there; None for the fewest that it can have. Shapes can live on it.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    if devices is None:
        devices = math.prod(size for size in dataclasses.astuple(shape) if size != REST)
    require(devices >= 1, "--devices", devices, "something must do the work", "give at least 1")
    return shape.make(jax.devices("cpu")[:1] * devices)  # one device that stands in for all


def parts(params: Any) -> dict[str, int]:
    """Parameters by part: the modules of the denoiser, and within each its blocks, those with a number together."""
    found: collections.Counter[str] = collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [str(getattr(key, "key", key)) for key in path]
        block = re.sub(r"(_block)?_\d+$", "", names[1].removeprefix("parts_")) if len(names) > 2 else ""
        found[f"{names[0]}.{block}" if block else names[0]] += math.prod(leaf.shape)
    return dict(sorted(found.items()))


def _rows(experiment: Experiment, mesh: Mesh) -> int:
    """Examples of a micro-batch on one device."""
    ways = batch_ways(mesh) * experiment.accumulation
    below, above = experiment.batch_size // ways * ways, -(-experiment.batch_size // ways) * ways
    require(
        below == above, "config.batch_size", experiment.batch_size,
        f"it does not divide over {mesh.size} devices with accumulation={experiment.accumulation}",
        f"use {below} or {above}" if below else f"use {above}",
    )  # fmt: skip
    return experiment.batch_size // ways


def _forward(task: Any, params: Any) -> tuple[Operations, Operations, Callable[[], dict[str, Encoded]]]:
    """Multiply-adds for one image of `encode` and of `predict_encoded`, and what makes its conditions in a trace."""
    denoiser = task.denoiser
    fields = jax.eval_shape(lambda: denoiser.conditioner.example(1, task.image_shape))
    drop = jax.eval_shape(lambda: denoiser.conditioner.none_dropped(1))
    x, t = jax.ShapeDtypeStruct((1, *task.image_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    trees = []  # embeddings hold arrays, not shapes: between traces they are taken apart

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

    return count(encoding), count(denoising), conditions


def _training(task: Any, params: Any, rows: int) -> tuple[ClosedJaxpr, int]:
    """The program of a micro-batch of so many rows, forward and backward, and the bytes of its examples."""
    fields = jax.eval_shape(lambda: task.denoiser.conditioner.example(rows, task.image_shape))
    batch = {**fields, "image": jax.ShapeDtypeStruct((rows, *task.image_shape), jnp.float32)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    examples = jax.eval_shape(task.draw, batch, jax.eval_shape(task.init_task_state), key)

    def mean(params: Any, examples: Any, key: Any) -> Any:
        return jnp.mean(task.loss(params, examples, key=key, train=True)[0])

    program = jax.make_jaxpr(jax.grad(mean))(params, examples, key)
    return program, sum(map(memory.array_bytes, jax.tree.leaves((batch, examples))))


def _process(denoiser: Any) -> Any:
    """The process, with initial parameters if it is learned."""
    process = denoiser.process
    return process.init_with_output(jax.random.key(0))[0] if isinstance(process, nn.Module) else process


def _sum(*terms: tuple[int | float, Operations]) -> Operations:
    tally: collections.Counter[str] = collections.Counter()
    for factor, operations in terms:
        tally.update({name: round(factor * number) for name, number in operations.by_dtype.items()})
    return Operations(tally, round(sum(factor * operations.constant for factor, operations in terms)))


def _seconds(operations: Operations, chip: Chip) -> float:
    """On one device at its peak."""
    return sum(2 * n / chip.flops.get(name, chip.flops["float32"]) for name, n in operations.by_dtype.items())


def _fixes(experiment: Experiment, mesh: Mesh, kept: memory.Memory, chip: Chip, rows: int) -> list[str]:
    """What would help, the cheapest first."""
    network: Any = experiment.task.denoiser.network
    words, sizes = [], dict(mesh.shape)
    lasting = kept.total - max(kept.activations + kept.gathered, kept.update) + kept.update
    if lasting > chip.memory / 2 and sizes["data"] > 1:
        ways = next((n for n in range(2, sizes["data"] + 1) if sizes["data"] % n == 0
                     and lasting / n < chip.memory / 2), sizes["data"])  # fmt: skip
        words.append(f"--config.mesh.fsdp={sizes['fsdp'] * ways} splits parameters, optimizer and average")
    if kept.activations > kept.update:
        if getattr(network, "remat", None) is False:
            words.append("--config.task.denoiser.network.remat=true recomputes what the backward pass needs")
        room = max(chip.memory - lasting, 1)
        split = next((n for n in range(2, rows + 1) if rows % n == 0 and kept.activations / n < room), rows)
        if rows > 1:
            parts = experiment.accumulation * split
            words.append(f"--config.accumulation={parts} makes micro-batches smaller")
    return words or ["take more devices, or a chip with more memory"]
