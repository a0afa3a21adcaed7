import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxdiff.distributed.mesh import MeshShape, batch_ways, global_batch
from jaxdiff.errors import UserError


def test_minus_one_takes_what_remains():
    assert dict(MeshShape().make().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(MeshShape(fsdp=4).make().shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert dict(MeshShape(data=2, fsdp=-1, tensor=2).make().shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(MeshShape().make(jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


def test_axes_are_laid_out_by_the_compiler():
    assert MeshShape().make().axis_types == (AxisType.Auto,) * 3


@pytest.mark.parametrize("shape", [{"fsdp": 3}, {"data": 2, "fsdp": 3}, {"data": 1, "fsdp": 3}, {"fsdp": 16}])
def test_sizes_that_do_not_divide_are_named(shape):
    with pytest.raises(UserError, match=rf"^config\.mesh\.fsdp={shape['fsdp']}: .*8 devices"):
        MeshShape(**shape).make()


def test_at_most_one_axis_is_the_rest_and_none_is_empty():
    with pytest.raises(UserError, match="data and fsdp"):
        MeshShape(data=-1, fsdp=-1)
    with pytest.raises(UserError, match="tensor=0"):
        MeshShape(tensor=0)


def test_global_batch_is_the_batch_split_over_data_and_fsdp():
    mesh = MeshShape(data=2, fsdp=2, tensor=2).make()
    assert batch_ways(mesh) == 4
    batch = {"image": np.arange(96.0, dtype=np.float32).reshape(8, 2, 2, 3), "label": np.arange(8)}
    joined = global_batch(batch, mesh)
    for name, array in batch.items():
        assert np.array_equal(joined[name], array)
        assert {shard.data.shape[0] for shard in joined[name].addressable_shards} == {2}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of one of several slices, as JAX describes it."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "none"
    device_kind: str = "none"


def test_slices_split_the_axis_data_alone():
    chips = [Chip(i, i // 4) for i in range(8)]
    mesh = MeshShape(fsdp=2, tensor=2).make(chips[::-1])
    slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    assert mesh.devices.shape == (2, 2, 2)
    assert np.array_equal(slices, np.array([0, 1])[:, None, None] * np.ones((2, 2, 2)))
    assert (
        np.vectorize(lambda chip: chip.slice_index)(MeshShape().make(chips).devices).ravel().tolist()
        == [0] * 4 + [1] * 4
    )
    with pytest.raises(
        UserError, match=r"config.mesh.data=1: expected a multiple of the 2 slices.* the 4 devices"
    ):
        MeshShape(fsdp=8).make(chips)
