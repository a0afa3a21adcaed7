"""Partitioning: turns the logical axis names of parameters into shardings over a mesh.

Tensor parallelism follows the names (`AXIS_RULES`). Fully sharded data parallelism (FSDP, ZeRO stage 3, Rajbhandari
et al. 2020) needs no names: it splits every large array along its largest axis that divides evenly.
"""

import math
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")
"""The mesh axes that split a batch."""

AXIS_RULES: dict[str, str] = {
    "channels_out": "tensor",
    "heads": "tensor",
}
"""Logical axis -> mesh axis. Other names (``channels_in``, ``embed``) split nothing."""

FSDP_FLOOR = 2**14
"""Arrays with fewer elements are replicated: gathering them would cost more than it saves."""


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding that splits the leading axis over `BATCH_AXES`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding with a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shardings(boxed: Any, mesh: Mesh, fsdp_floor: int = FSDP_FLOOR) -> Any:
    """The shardings of all arrays of a tree.

    Args:
      boxed: arrays or `jax.ShapeDtypeStruct`s, boxed in `nn.LogicallyPartitioned` if their axes have names. An
        optimizer state made from boxed parameters keeps their boxes, so it is split as the parameters are.
      mesh: a mesh with the axes data, fsdp and tensor.
      fsdp_floor: smallest number of elements that FSDP splits.

    Returns:
      `NamedSharding`s in the structure of the unboxed tree.
    """

    def sharding(leaf: Any) -> Any:
        names: tuple[str | None, ...] = ()
        if isinstance(leaf, nn.Partitioned):
            names, leaf = leaf.names, leaf.value
        if not jax.tree.leaves(leaf):  # masked in the state of one of several optimizers
            return leaf
        return NamedSharding(mesh, partition(tuple(leaf.shape), names, dict(mesh.shape), fsdp_floor))

    return jax.tree.map(sharding, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))


def partition(
    shape: tuple[int, ...],
    names: tuple[str | None, ...],
    mesh_shape: dict[str, int],
    fsdp_floor: int = FSDP_FLOOR,
) -> PartitionSpec:
    """The mesh axis, or None, that splits each axis of an array.

    Args:
      shape: shape of the array.
      names: logical names of the axes. They mean nothing unless there is one for each axis, as in optimizer states
        whose arrays have fewer axes than the parameters.
      mesh_shape: number of devices by mesh axis.
      fsdp_floor: smallest number of elements that FSDP splits.
    """
    spec: list[str | None] = [None] * len(shape)
    for i, name in enumerate(names if len(names) == len(shape) else ()):
        axis = AXIS_RULES.get(name or "")
        # an axis that does not divide (three colours over four devices) is not split
        if axis and axis not in spec and mesh_shape[axis] > 1 and shape[i] % mesh_shape[axis] == 0:
            spec[i] = axis
    fsdp = mesh_shape["fsdp"]
    if fsdp > 1 and math.prod(shape) >= fsdp_floor:
        free = [i for i, size in enumerate(shape) if spec[i] is None and size % fsdp == 0]
        if free:
            spec[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*spec)
