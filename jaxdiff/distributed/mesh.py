"""Device mesh with three axes, and the placement of batches on it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxdiff.distributed import runtime
from jaxdiff.distributed.partitioning import BATCH_AXES, batch_sharding
from jaxdiff.errors import expect

REST = -1


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Number of devices along each axis of the mesh; -1 for one axis means all remaining devices.

    One device is the mesh (1, 1, 1) and runs the same program.

    Attributes:
      data: devices that hold copies of the parameters and split the batch.
      fsdp: devices that split both the parameters and the batch.
      tensor: devices that split the parameters alone.
    """

    data: int = REST
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        for name, size in dataclasses.asdict(self).items():
            fits = size == REST or size >= 1
            expect(fits, name, size, "a number of devices >= 1, or -1", "use at least 1, or -1")
        rests = [name for name, size in dataclasses.asdict(self).items() if size == REST]
        got = f"{len(rests)} axes"
        expect(len(rests) <= 1, " and ".join(rests), REST, "-1 for at most one axis", "keep one -1", got)

    def make(self, devices: Sequence[Any] | None = None) -> Mesh:
        """Make the mesh, with axes that the compiler lays out (`AxisType.Auto`).

        Several slices of TPUs, which a slower network connects, split the axis data: only gradients pass between them.

        Args:
          devices: the devices; None for all.

        Raises:
          UserError: the sizes do not multiply to the number of devices, or the slices do not split the axis data.
        """
        devices = runtime.devices() if devices is None else devices
        sizes = dataclasses.asdict(self)
        fixed = math.prod(size for size in sizes.values() if size != REST)
        name = max((axis for axis in sizes if sizes[axis] != REST), key=lambda axis: sizes[axis])
        fits = len(devices) % fixed == 0 if REST in sizes.values() else len(devices) == fixed
        product = " x ".join("rest" if size == REST else str(size) for size in sizes.values())
        expected = f"data x fsdp x tensor to equal the {len(devices)} devices"
        fix = f"choose sizes that divide {len(devices)}, and -1 for one of them"
        expect(fits, f"config.mesh.{name}", sizes[name], expected, fix, product)
        shape = tuple(len(devices) // fixed if size == REST else size for size in sizes.values())
        types = (AxisType.Auto,) * len(shape)
        slices = len({getattr(device, "slice_index", 0) for device in devices})
        if slices > 1:
            return Mesh(_over_slices(shape, slices, devices), tuple(sizes), axis_types=types)
        return jax.make_mesh(shape, tuple(sizes), axis_types=types, devices=devices)


def _over_slices(shape: tuple[int, ...], slices: int, devices: Sequence[Any]) -> Any:
    """The devices of several slices as an array of this shape, whose first axis the slices split."""
    data, *rest = shape
    fix = f"make fsdp x tensor divide the {len(devices) // slices} devices of a slice"
    expect(data % slices == 0, "config.mesh.data", data, f"a multiple of the {slices} slices", fix)
    inner, outer = (data // slices, *rest), (slices, *(1 for _ in rest))
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices)


def batch_ways(mesh: Mesh) -> int:
    """Number of parts into which a mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def global_batch(batch: Any, mesh: Mesh) -> Any:
    """Assemble the global batch from the part of each process.

    Args:
      batch: a tree of NumPy arrays with a leading batch axis of equal size in every process.
      mesh: the mesh, whose axes data and fsdp split the batch.

    Returns:
      The tree of global arrays; their batch axis concatenates the parts in the order of the processes.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda part: jax.make_array_from_process_local_data(sharding, part), batch)
