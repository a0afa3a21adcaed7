"""Changes of a config that make a training step fit into the memory of a device."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from jax.sharding import Mesh

from jaxdiff.config.blocks import fields_of
from jaxdiff.cost.memory import Memory
from jaxdiff.experiment import Experiment


def fixes(experiment: Experiment, mesh: Mesh, memory: Memory, capacity: int, rows: int) -> list[str]:
    """Suggest changes of a config that needs too much memory, the cheapest first.

    Args:
      experiment: the experiment.
      mesh: its devices.
      memory: what a training step needs on a device.
      capacity: what a device has, bytes.
      rows: examples of a micro-batch on a device.
    """
    return [
        *_fsdp(mesh, memory, capacity),
        *(_smaller_state(experiment, memory) if memory.lasting + memory.update > capacity else ()),
        *(_remat(experiment) if memory.activations > memory.update else ()),
        *(_accumulation(experiment, memory, capacity, rows) if memory.activations > memory.update else ()),
    ] or ["use more devices, or a chip with more memory"]


def switched_off(block: Any, field: str, path: str = "config") -> Iterator[str]:
    """Paths of the boolean fields of this name that are False, in a block and all blocks inside."""
    if isinstance(block, Mapping):
        for name, inner in block.items():
            yield from switched_off(inner, field, f"{path}.{name}")
    elif isinstance(block, tuple):
        for i, inner in enumerate(block):
            yield from switched_off(inner, field, f"{path}[{i}]")
    elif dataclasses.is_dataclass(block) and not isinstance(block, type):
        for name in fields_of(type(block)):
            value = getattr(block, name)
            if name == field and value is False:
                yield f"{path}.{name}"
            yield from switched_off(value, field, f"{path}.{name}")


def _fsdp(mesh: Mesh, memory: Memory, capacity: int) -> Iterator[str]:
    sizes = dict(mesh.shape)
    lasting = memory.lasting + memory.update
    if lasting > capacity / 2 and sizes["data"] > 1:
        divisors = [n for n in range(2, sizes["data"] + 1) if sizes["data"] % n == 0]
        ways = next((n for n in divisors if lasting / n < capacity / 2), sizes["data"])
        yield f"--config.mesh.fsdp={sizes['fsdp'] * ways} splits parameters, optimizer state and averages"


def _smaller_state(experiment: Experiment, memory: Memory) -> Iterator[str]:
    """Flags for a state that does not fit, whatever the activations are."""
    task: Any = experiment.task
    if memory.optimizer > memory.parameters / 2:
        yield "--config.optimizer='jaxdiff.training.adafactor:Adafactor()' keeps rows and columns of squared gradients"
    if getattr(task, "param_dtype", None) == "float32":
        yield "--config.task.param_dtype=bfloat16 halves parameters, gradients and averages"
    if memory.ema:
        yield "--config.ema='jaxdiff.training.ema:NoEma()' samples with the latest parameters"
    wide = [name for name, origin in task.frozen.items() if getattr(origin, "dtype", None) == "float32"]
    if wide:
        yield f"dtype='float16' of the weights of {', '.join(wide)} halves them"


def _remat(experiment: Experiment) -> Iterator[str]:
    for path in switched_off(experiment.task.denoiser, "remat", "config.task.denoiser"):
        yield f"--{path}=true recomputes what the backward pass needs"


def _accumulation(experiment: Experiment, memory: Memory, capacity: int, rows: int) -> Iterator[str]:
    room = max(capacity - memory.lasting - memory.update, 1)
    divisors = [n for n in range(2, rows + 1) if rows % n == 0]
    split = next((n for n in divisors if memory.activations / n < room), rows)
    if rows > 1:
        yield f"--config.accumulation={experiment.accumulation * split} makes micro-batches smaller"
