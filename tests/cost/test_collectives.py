"""Collectives: programs written by hand, and programs on eight devices whose collectives are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff.cost import hlo
from jaxdiff.cost.collectives import BETWEEN_SLICES, collectives
from jaxdiff.distributed.mesh import MeshShape


def program(*lines, computations=""):
    body = "\n".join(f"  {line}" for line in lines)
    return hlo.parse(
        f"HloModule m, is_scheduled=true\n{computations}\nENTRY %main (p: f32[64]) -> f32[64] {{\n{body}\n}}\n"
    )


def of(*lines, computations=""):
    found = collectives(program(*lines, computations=computations))
    return {
        name: (each.count, each.bytes, each.overlapped, each.overlapped_bytes) for name, each in found.items()
    }


P = "%p = f32[64] parameter(0)"
START = "%start = (f32[64], f32[512], u32[]) all-gather-start(%p), channel_id=1, dimensions={0}"
DONE = "ROOT %done = f32[512] all-gather-done(%start)"


def test_a_pair_is_overlapped_if_something_is_computed_between():
    work = "%work = f32[64] fusion(%p), kind=kLoop, calls=%nothing"
    naming = '%name = f32[64] custom-call(%p), custom_call_target="ConcatBitcast"'
    assert of(P, START, DONE) == {"all-gather": (1, 2048, 0, 0)}
    assert of(P, START, work, DONE) == {"all-gather": (1, 2048, 1, 2048)}
    assert of(P, work, START, naming, DONE, "%late = f32[64] dot(%p, %p)") == {"all-gather": (1, 2048, 0, 0)}


def test_the_larger_of_operand_and_result_counts():
    assert of(P, "ROOT %r = f32[64] all-reduce(%p), to_apply=%add") == {"all-reduce": (1, 256, 0, 0)}
    assert of(P, "ROOT %r = f32[8] reduce-scatter(%p), dimensions={0}") == {"reduce-scatter": (1, 256, 0, 0)}
    assert of(P, "ROOT %r = f32[512] all-gather(%p), dimensions={0}") == {"all-gather": (1, 2048, 0, 0)}
    both = "ROOT %r = (f32[64], f32[64]) all-reduce(%p, %p), to_apply=%add"
    assert of(P, both) == {"all-reduce": (1, 512, 0, 0)}


FUSED = """
%part_{0} (a: f32[64], b: f32[8,8]) -> f32[8,8] {{
  %a.{0} = f32[64] parameter(0)
  %b.{0} = f32[8,8] parameter(1)
  %gather.{0} = f32[512] all-gather(%a.{0}), channel_id=9, dimensions={{0}}
  ROOT %product.{0} = f32[8,8] {1}(%b.{0}, %b.{0})
}}
"""


def test_parts_of_one_collective_in_several_fusions_count_once():
    names = ("one", "two", "three")
    lines = [f"%{name} = f32[8,8] fusion(%p, %p), kind=kOutput, calls=%part_{name}" for name in names]
    computing = "".join(FUSED.format(name, "convolution") for name in names)
    assert of(P, *lines, computations=computing) == {"all-gather": (1, 2048, 1, 2048)}
    waiting = "".join(FUSED.format(name, "bitcast") for name in names)
    assert of(P, *lines, computations=waiting) == {"all-gather": (1, 2048, 0, 0)}
    last = FUSED.format("one", "convolution") + "".join(FUSED.format(name, "bitcast") for name in names[1:])
    assert of(P, *lines, computations=last) == {"all-gather": (1, 2048, 1, 2048)}


def test_what_leaves_a_slice_is_sent_by_the_host():
    sending = (
        "%sent = (f32[16], u32[], token[]) send(%p, %t), is_host_transfer=true, "
        'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}'
    )
    assert of(P, sending) == {BETWEEN_SLICES: (1, 64, 0, 0)}
    assert of(P, sending.replace("xla_megascale_runtime", "other")) == {}


def test_a_collective_in_a_loop_counts_as_often_as_it_runs():
    inside = """
%condition (s: (s32[], f32[64])) -> pred[] {
  %limit = s32[] constant(6)
  ROOT %less = pred[] compare(%counter, %limit), direction=LT
}

%body (s: (s32[], f32[64])) -> (s32[], f32[64]) {
  %x = f32[64] get-tuple-element(%s), index=1
  ROOT %sum = f32[64] all-reduce(%x), channel_id=2, to_apply=%add
}
"""
    loop = "ROOT %loop = (s32[], f32[64]) while(%p), condition=%condition, body=%body"
    assert of(P, loop, computations=inside) == {"all-reduce": (6, 6 * 256, 0, 0)}


def compiled(shape, weights, data, out):
    mesh = MeshShape(**shape).make()
    place = lambda shape, spec: jax.ShapeDtypeStruct(  # noqa: E731
        shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec))
    )
    w, x = place((32, 48), weights), place((4096, 32), data)
    gradient = jax.grad(lambda w, x: jnp.sum((x @ w) ** 2))
    program = jax.jit(gradient, out_shardings=NamedSharding(mesh, PartitionSpec(*out)))
    return collectives(hlo.parse(program.lower(w, x).compile().as_text()))


def test_data_parallel_gradients_are_summed_once():
    (found,) = compiled({}, (), ("data",), ()).items()
    assert found[0] == "all-reduce"
    assert (found[1].count, found[1].bytes) == (1, 4 * 32 * 48)


def test_a_split_weight_is_gathered():
    found = compiled({"fsdp": 8, "data": 1}, (None, "fsdp"), ("fsdp",), (None, "fsdp"))
    assert found["all-gather"].bytes == 4 * 32 * 48
    assert found["all-gather"].count == 1


@pytest.mark.parametrize("shape", [{"data": 1, "tensor": 8}])
def test_a_device_alone_with_its_part_needs_no_collective(shape):
    assert compiled(shape, (None, "tensor"), (), (None, "tensor")) == {}
