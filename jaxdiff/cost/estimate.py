"""Cost of an experiment: parameters, multiply-adds, memory and time, from shapes alone.

Nothing is compiled, and no array of the model's size is allocated. The network is traced three times: to initialise
it, to run it, and to train it.
"""

import collections
import dataclasses
import math
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import Mesh

from jaxdiff.cost import memory, programs
from jaxdiff.cost.chips import CHIPS, Chip, chip_of
from jaxdiff.cost.fixes import fixes
from jaxdiff.cost.fusion import fused_bytes
from jaxdiff.cost.operations import Operations, count
from jaxdiff.cost.programs import Programs, Trees
from jaxdiff.cost.sampling import Evaluations, evaluations
from jaxdiff.distributed.mesh import REST, MeshShape, batch_ways
from jaxdiff.errors import expect
from jaxdiff.experiment import Experiment, SampledTask


class _Work(NamedTuple):
    """Multiply-adds.

    Attributes:
      training: of a training step for one part of the batch, as the mesh splits it.
      forward: of one denoiser call for one image.
      sampling: of one sample.
      calls: the evaluations of the network in `sampling`.
    """

    training: Operations
    forward: Operations
    sampling: Operations
    calls: Evaluations


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
    has, task = chip_of(chip), experiment.sampled.for_shapes()
    expected, fix = "a fraction of the peak in (0, 1]", "give one, such as 0.4"
    expect(0 < utilisation <= 1, "--utilisation", utilisation, expected, fix)
    mesh = mesh_of(experiment.mesh, devices)
    rows = _rows(experiment, mesh)
    shapes = programs.trees(experiment, task, mesh)
    traced = programs.trace(task, shapes, rows, experiment.accumulation, experiment.recipe.reuse)
    work = _work(experiment, task, traced)
    accumulation = experiment.accumulation
    plain, tiled = (_memory_of_step(shapes, traced, mesh, accumulation, each) for each in (False, True))
    kept = tiled if has.tiled else plain
    fits_on = [name for name, each in CHIPS.items() if (tiled if each.tiled else plain).total <= each.memory]
    return {
        **_of_parameters(shapes),
        **_of_operations(work, rows * experiment.accumulation),
        **_of_memory(kept, _memory_of_sample(task, shapes, traced, work.calls), has),
        "fits_on": fits_on,
        "fix": [] if kept.total <= has.memory else fixes(experiment, mesh, kept, has.memory, rows),
        **_of_time(work, has, utilisation, experiment.steps, mesh),
        "chip": chip,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "utilisation": utilisation,
        "steps": experiment.steps,
        "batch_size": experiment.batch_size,
        "accumulation": experiment.accumulation,
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


def _rows(experiment: Experiment, mesh: Mesh) -> int:
    """Examples of a micro-batch on one device."""
    ways = batch_ways(mesh) * experiment.accumulation
    below, above = experiment.batch_size // ways * ways, -(-experiment.batch_size // ways) * ways
    expected = f"a multiple of {ways} for {mesh.size} devices with accumulation={experiment.accumulation}"
    fix = f"use {below} or {above}" if below else f"use {above}"
    expect(below == above, "config.batch_size", experiment.batch_size, expected, fix)
    return experiment.batch_size // ways


def _work(experiment: Experiment, task: SampledTask, traced: Programs) -> _Work:
    encode, denoise = count(traced.encode), count(traced.denoise)
    calls = evaluations(experiment.recipe, _process(task.denoiser), task.data_shape, traced.conditions)
    sampling = _sum(
        (2, encode),  # the conditional and the unconditional embeddings
        (calls.whole * calls.model, denoise),
        ((calls.calls - calls.whole) * calls.model, count(traced.reusing)),
        (calls.calls, calls.other),
        (1, count(traced.decode)),
    )
    training = _sum((experiment.accumulation, count(traced.train)), (1, count(traced.draw)))
    return _Work(training, _sum((1, encode), (1, denoise)), sampling, calls)


def _of_parameters(shapes: Trees) -> dict[str, Any]:
    return {
        "parameters": _size(shapes.own),
        "parameter_bytes": memory.tree_bytes(shapes.own),
        "frozen_parameters": {name: _size(shapes.networks[name]) for name in sorted(shapes.networks)},
        "parts": parts(shapes.own),
    }


def _of_operations(work: _Work, images: int) -> dict[str, Any]:
    """Figures of multiply-adds; `images` are those of a part of the batch."""
    return {
        "multiply_adds": work.forward.total,
        "multiply_adds_by_type": dict(work.forward.by_dtype),
        "constant_multiply_adds": work.forward.constant,
        "training_multiply_adds": round(work.training.total / images),
        "sampling_multiply_adds": work.sampling.total,
        "sampling": {
            "calls": work.calls.calls,
            "whole_calls": work.calls.whole,
            "evaluations": work.calls.model,
            "guiding_model_evaluations": work.calls.guiding_model,
        },
    }


def _of_memory(kept: memory.Memory, drawn: int, chip: Chip) -> dict[str, Any]:
    """Figures of `kept` in training and of `drawn` in sampling, against the memory of a chip."""
    return {
        "memory_bytes": kept.total,
        "memory": dataclasses.asdict(kept),
        "chip_memory_bytes": chip.memory,
        "fits": kept.total <= chip.memory,
        "sampling_memory_bytes": drawn,
        "sampling_fits": drawn <= chip.memory,
    }


def _memory_of_step(
    shapes: Trees, traced: Programs, mesh: Mesh, accumulation: int, tiled: bool
) -> memory.Memory:
    """The memory of a training step, on chips as `Chip.tiled` says."""
    live_bytes = fused_bytes if tiled else memory.live_bytes
    # The tensor axis splits channels and heads, and so the activations; what XLA gathers is not counted.
    ways = mesh.shape["tensor"]
    return memory.of_step(
        shapes.state,
        accumulation * traced.examples,
        live_bytes(traced.train) // ways,
        accumulation,
        frozen=(shapes.untrained, shapes.sharded),
        drawing=live_bytes(traced.draw) // ways,
    )


def _memory_of_sample(task: SampledTask, shapes: Trees, traced: Programs, calls: Evaluations) -> int:
    codec = {name: shapes.networks[name] for name in task.codec.frozen}
    steps = (2, traced.encode), (math.ceil(calls.model), traced.denoise), (1, traced.decode)
    return memory.of_sample({"model": shapes.params, **codec}, *steps)


def _of_time(work: _Work, chip: Chip, utilisation: float, steps: int, mesh: Mesh) -> dict[str, Any]:
    sharing = mesh.size / batch_ways(mesh)  # devices that share a part of the batch
    step = _seconds(work.training, chip) / sharing / utilisation
    hours = step * steps / 3600
    return {
        "hours": hours,
        "device_hours": hours * mesh.size,
        "step_seconds": step,
        "sampling_seconds": _seconds(work.sampling, chip) / utilisation,
    }


def _size(tree: Any) -> int:
    """Number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


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
