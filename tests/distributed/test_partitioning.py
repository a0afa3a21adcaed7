import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from jaxdiff.distributed import partitioning
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.distributed.partitioning import partition

EACH = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("shape", "names", "spec"),
    [
        ((3, 3, 128, 64), (None, None, "channels_in", "channels_out"), (None, None, "fsdp", "tensor")),
        ((3, 3, 2048, 3), (None, None, "channels_in", "channels_out"), (None, None, "fsdp", None)),
        ((64,), ("channels_out",), ("tensor",)),  # too small for FSDP
        ((64,), (), (None,)),
        ((128, 256), (), (None, "fsdp")),  # the largest axis
        ((999, 128), (), (None, "fsdp")),  # the largest that divides
        ((999, 127), (), (None, None)),
        ((8, 8), ("heads", "channels_out"), ("tensor", None)),  # a mesh axis splits an array once
        ((), (), ()),
    ],
)
def test_each_axis_is_split_by_the_rules(shape, names, spec):
    assert partition(shape, names, EACH) == PartitionSpec(*spec)


def test_mesh_axes_of_size_one_split_nothing():
    alone = {"data": 8, "fsdp": 1, "tensor": 1}
    assert partition((512, 512), ("channels_in", "channels_out"), alone) == PartitionSpec(None, None)


def test_rules_name_axes_of_the_mesh():
    assert set(partitioning.AXIS_RULES.values()) <= set(MeshShape().make().axis_names)


def test_optimizer_state_is_split_as_the_parameters_are():
    mesh = MeshShape(fsdp=2, tensor=2).make()
    kernel = nn.LogicallyPartitioned(jnp.zeros((128, 256)), ("channels_in", "channels_out"))
    boxed = jax.eval_shape(lambda: optax.adam(1e-3).init({"kernel": kernel, "bias": jnp.zeros(256)}))
    adam = partitioning.shardings(boxed, mesh)[0]
    assert adam.mu["kernel"].spec == adam.nu["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert adam.mu["bias"].is_fully_replicated
    assert adam.count.is_fully_replicated
