"""The devices of a run as a mesh of three axes, and how a batch gets onto it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from jaxdiff.distributed.partitioning import BATCH_AXES, batch_sharding
from jaxdiff.errors import require

REST = -1


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """How many devices each axis of the mesh takes; -1 (for one axis) means all that remain.

    `data` copies the parameters and splits the batch; `fsdp` splits both; `tensor` splits the parameters
    alone. One device is the mesh (1, 1, 1): the same program.
    """

    data: int = REST
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        for name, size in dataclasses.asdict(self).items():
            require(size == REST or size >= 1, name, size, "an axis needs a device", "use at least 1, or -1")
        rests = [name for name, size in dataclasses.asdict(self).items() if size == REST]
        require(
            len(rests) <= 1, " and ".join(rests), REST, "only one can be what remains", "leave -1 for one"
        )

    def make(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh over `devices` (all there are, unless given), with axes that the compiler lays out (Auto).

        Raises:
          UserError: the sizes do not multiply to the number of devices.
        """
        devices = jax.devices() if devices is None else devices
        sizes = dataclasses.asdict(self)
        fixed = math.prod(size for size in sizes.values() if size != REST)
        name = max((axis for axis in sizes if sizes[axis] != REST), key=lambda axis: sizes[axis])
        fits = len(devices) % fixed == 0 if REST in sizes.values() else len(devices) == fixed
        require(
            fits, f"config.mesh.{name}", sizes[name],
            f"data x fsdp x tensor cannot fill the {len(devices)} devices there are with "
            + " x ".join("rest" if size == REST else str(size) for size in sizes.values()),
            f"choose sizes that divide {len(devices)}, and -1 for one of them",
        )  # fmt: skip
        shape = tuple(len(devices) // fixed if size == REST else size for size in sizes.values())
        return jax.make_mesh(shape, tuple(sizes), axis_types=(AxisType.Auto,) * len(shape), devices=devices)


def batch_ways(mesh: Mesh) -> int:
    """Into how many parts a mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def global_batch(batch: Any, mesh: Mesh) -> Any:
    """The batch of all processes, from the part that this process has read.

    Args:
      batch: a tree of numpy arrays with a leading batch axis, of equal size in every process.
      mesh: its axes data and fsdp split the batch.

    Returns:
      The tree of global arrays; their batch axis is the processes' parts, joined in order.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda part: jax.make_array_from_process_local_data(sharding, part), batch)
