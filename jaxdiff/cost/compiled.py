"""Programs compiled for chips that need not be there: what they hold, compute, move and wait for.

Sources: ``jax.stages.Compiled`` for memory and operations, and the optimised program's text for the rest.
"""

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from jaxdiff.cost import hlo
from jaxdiff.cost.chips import CHIPS, GiB
from jaxdiff.cost.collectives import collectives
from jaxdiff.cost.programs import sharded
from jaxdiff.cost.topologies import KINDS, Kind, Topology
from jaxdiff.cost.traffic import traffic
from jaxdiff.distributed.partitioning import batch_sharding
from jaxdiff.experiment import Experiment
from jaxdiff.tasks.protocols import Sampleable
from jaxdiff.training.programs import repeated
from jaxdiff.training.state import abstract_params, abstract_state
from jaxdiff.training.step import Frozen, jit_train_step, make_train_step

QUICK = {"exec_time_optimization_effort": -1.0}
"""Options of a quick compilation, whose program is slower; docs/plan.md has what was measured."""

UNKNOWN = 2**62
"""More cycles than any instruction takes: the compiler's mark for what it cannot estimate."""

_EXCEEDED = (
    re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM"),
    re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm"),
)
_TOO_LARGE = ("RESOURCE_EXHAUSTED", "entries[i] <= std::numeric_limits<uint32_t>::max()")
_UNITS = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": GiB, "T": 2.0**40}
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


class TooLarge(Exception):
    """A program that the compiler could not fit into the memory of a chip.

    Attributes:
      needed: bytes that it needed after all attempts to save; None if it does not say.
    """

    def __init__(self, message: str, needed: int | None):
        super().__init__(message)
        self.needed = needed


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program.

    Attributes:
      program: as JAX returns it; it can be serialized.
      seconds: of compiling it.
    """

    program: Any
    seconds: float


def lower_step(experiment: Experiment, mesh: Mesh) -> Any:
    """The training step of an experiment, as a run jits it, lowered for the devices of a mesh; no array is made.

    Args:
      experiment: the experiment. Its data are opened only if its task makes no samples.
      mesh: see `Topology.devices` for devices that are not there.

    Returns:
      A ``jax.stages.Lowered``.

    Raises:
      UserError: the batch does not divide over the devices.
    """
    experiment.check_devices(mesh.size)
    task = _for_shapes(experiment.task)
    optimizer, tolerance = experiment.optimizer.make(experiment.steps), experiment.fault_tolerance
    untrained = experiment.optimizer.frozen
    state = abstract_state(task, optimizer, mesh, experiment.ema.count, untrained, tolerance.kept_losses)
    networks = _networks(task)
    rest = abstract_params(task, mesh, untrained)[1] if untrained else {}
    frozen = Frozen(sharded(networks, mesh), rest)
    step = make_train_step(
        task, optimizer, experiment.ema, experiment.seed, experiment.accumulation, tolerance.skip_spikes
    )
    return jit_train_step(step, state, mesh, frozen).lower(state, _batch(experiment, task, mesh), frozen)


def compile_lowered(lowered: Any, quick: bool = False) -> Compiled:
    """Compile a lowered program.

    Args:
      lowered: a ``jax.stages.Lowered``.
      quick: spend less time on it, see `QUICK`; for TPUs.

    Raises:
      TooLarge: it does not fit into the memory of a chip.
    """
    began = time.monotonic()
    try:
        program = lowered.compile(compiler_options=QUICK if quick else None)
    except JaxRuntimeError as error:
        text = str(error)
        if not any(mark in text for mark in _TOO_LARGE):
            raise
        raise TooLarge(text.partition("\n")[0], exceeded(text)) from error
    return Compiled(program, time.monotonic() - began)


def exceeded(message: str) -> int | None:
    """Bytes that a program needed, from the compiler's message that they are too many; None if it names none."""
    for pattern in _EXCEEDED:
        if match := pattern.search(message):
            return int(float(match[1]) * _UNITS[match[2]])
    return None


def report(compiled: Compiled, topology: Topology, flops: float | None) -> dict[str, Any]:
    """What a compiled program needs and does, on each device.

    Args:
      compiled: the program, compiled for `topology`.
      topology: its chips.
      flops: floating-point operations of the model on one device, see `jaxdiff.cost.estimate`; None if unknown.

    Returns:
      Plain numbers, strings and dicts, which JSON can hold; docs/plan.md describes the fields.
    """
    text = compiled.program.as_text()
    module, cost = hlo.parse(text), compiled.program.cost_analysis() or {}
    kind = KINDS[topology.kind]
    held, moved = memory(compiled.program.memory_analysis()), traffic(module)
    counted = float(cost.get("flops", 0))
    optimal = float(cost.get("optimal_seconds", 0))
    times = seconds(kind, flops or counted, moved.memory, 0.0 if module.loops else optimal)
    peak = CHIPS[kind.chip].flops["bfloat16"]
    return {
        "memory": held,
        "memory_bytes": sum(held.values()) - 2 * held["aliased"],
        "usable_bytes": kind.usable,
        "flops": flops,
        "compiler_flops": counted,
        "optimal_seconds": optimal,
        **times,
        "peak_fraction": (flops or counted) / peak / times["seconds"] if times["seconds"] else None,
        "cycles": cycles(module),
        "collectives": {name: dataclasses.asdict(each) for name, each in collectives(module).items()},
        "traffic": dataclasses.asdict(moved),
        "compiler_accessed_bytes": float(cost.get("bytes accessed", 0)),
        "relayout_fraction": moved.relayout_bytes / max(moved.accessed, 1),
        "padding_fraction": moved.padding / max(moved.memory, 1),
        "compile_seconds": compiled.seconds,
    }


def memory(analysis: Any) -> dict[str, int]:
    """Bytes on a device by purpose, from a ``CompiledMemoryStats``; outputs in donated arguments are `aliased`."""
    return {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "aliased": analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
    }


def seconds(kind: Kind, flops: float, moved: float, optimal: float) -> dict[str, Any]:
    """The estimated time of one run of a program, and who estimated it.

    Args:
      kind: the chip.
      flops: floating-point operations on one device.
      moved: bytes to and from its large memory.
      optimal: the compiler's estimate, 0 for none. It counts -1 s for what it cannot estimate, and loops once. So it
        is used only if it is possible: no less than the operations need at the chip's peak.

    Returns:
      `seconds`, `estimated_by`: compiler or roofline, `roofline_seconds`: the larger of the times that operations and
      bytes need.
    """
    least = flops / CHIPS[kind.chip].flops["bfloat16"]
    roofline = max(least, moved / kind.bandwidth)
    sane = optimal > 0 and optimal >= least
    return {
        "seconds": optimal if sane else roofline,
        "estimated_by": "compiler" if sane else "roofline",
        "roofline_seconds": roofline,
    }


def cycles(module: hlo.Module) -> int | None:
    """The compiler's cycles of all instructions one after another; None where it does not know one of them."""
    total = 0
    for lines, times in module.scheduled():
        for line in lines:
            found = _CYCLES.search(line.rest)
            total += times * int(found[1]) if found else 0
    return total if total < UNKNOWN else None


def _for_shapes(task: Any) -> Any:
    """The task for shapes, which reads no files; a task without samples as it is."""
    return task.for_shapes() if isinstance(task, Sampleable) else task


def _networks(task: Any) -> Mapping[str, Any]:
    """The trees of frozen networks; those of a task that does not know their shapes are read."""
    if isinstance(task, Sampleable):
        return task.frozen_shapes()
    return {name: nn.meta.unbox(origin.read()) for name, origin in task.frozen.items()}


def _batch(experiment: Experiment, task: Any, mesh: Mesh) -> Mapping[str, Any]:
    """The shapes of a batch of all devices."""
    size, sharding = experiment.batch_size, batch_sharding(mesh)
    if isinstance(task, Sampleable):
        batch = jax.eval_shape(lambda: task.stored_example(size))
    else:
        batch = repeated(experiment.data.example(), size)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), batch)
