"""Programs as text: sizes against closed forms, structure against small programs written by hand."""

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.cost import hlo

LOOP = """HloModule jit_f, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%condition (state: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %state = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %counter = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%counter, %limit), direction=LT
}

%body (state.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state.1 = (s32[], /*index=1*/f32[8]{0:T(128)(2,1)S(1)}) parameter(0)
  %value = f32[8] get-tuple-element(%state.1), index=1
  %sine = f32[8] sine(%value), metadata={op_name="jit(f)/sin(x)"}
  ROOT %both = (s32[], f32[8]) tuple(%next, %sine)
}

ENTRY %main (p: f32[8]) -> f32[] {
  %p = f32[8]{0:T(128)} parameter(0)
  %zero = f32[] constant(0)
  %loop = (s32[]{:T(128)}, f32[8]{0:T(128)(2,1)S(1)}) while(%start), condition=%condition, body=%body
  ROOT %total = f32[] reduce(f32[8]{0} %p, f32[] %zero), dimensions={0}, to_apply=%add, channel_id=3
}
"""


@pytest.mark.parametrize(
    ("text", "numbers", "memory"),
    [
        ("f32[3,5]", 60, 60),
        ("f32[3,5]{1,0:T(8,128)}", 60, 4 * 8 * 128),
        ("f32[3,5]{0,1:T(8,128)}", 60, 4 * 8 * 128),
        ("f32[9,5]{1,0:T(8,128)}", 180, 4 * 16 * 128),
        ("f32[9,5]{0,1:T(8,128)}", 180, 4 * 8 * 128),
        ("bf16[2,7,3,32]{3,0,2,1:T(8,128)(2,1)S(1)}", 2 * 2 * 7 * 3 * 32, 2 * 7 * 3 * 8 * 128),
        ("f32[200]{0:T(128)}", 800, 1024),
        ("f32[200]{0:T(8,128)}", 800, 1024),
        ("f32[]", 4, 4),
        ("f32[]{:T(128)}", 4, 4),
        ("s4[16]", 8, 8),
        ("pred[10]", 10, 10),
        ("f8e4m3fn[10]", 10, 10),
        ("f32[0,5]", 0, 0),
    ],
)
def test_bytes_of_an_array_and_of_its_tiles(text, numbers, memory):
    (array,) = hlo.arrays(text)
    assert (array.bytes, array.padded) == (numbers, memory)


def test_a_type_may_hold_several_arrays_in_several_memories():
    found = hlo.arrays("(bf16[8,4]{1,0:T(8,128)(2,1)S(1)}, (u32[]{:S(2)}, token[]), /*index=3*/f32[2])")
    assert [(array.dtype, array.shape, array.space) for array in found] == [
        ("bf16", (8, 4), 1), ("u32", (), 2), ("f32", (2,), 0),
    ]  # fmt: skip
    assert hlo.total(found) == 64 + 4 + 8
    assert found[0].layout == "1,0:T(8,128)(2,1)"


def test_instructions_have_operands_and_called_computations():
    module = hlo.parse(LOOP)
    assert list(module.computations) == ["add", "condition", "body", "main"]
    p, zero, loop, total = module.computations[module.entry]
    assert (p.opcode, p.inputs, zero.opcode, zero.inputs) == ("parameter", "0", "constant", "0")
    assert (loop.opcode, loop.operands, loop.called) == ("while", ("start",), ("condition", "body"))
    assert (total.operands, total.called, total.channel, total.root) == (("p", "zero"), (), "3", True)
    assert [array.shape for array in loop.arrays] == [(), (8,)]
    assert [line.name for line in module.inside(loop)][-3:] == ["value", "sine", "both"]


def test_a_loop_runs_until_its_counter_reaches_the_constant():
    module = hlo.parse(LOOP)
    loop = module.computations["main"][2]
    assert module.loops
    assert module.trips(loop) == 7
    assert [(lines[0].name, times) for lines, times in module.scheduled()] == [
        ("p", 1), ("limit", 7), ("state.1", 7),
    ]  # fmt: skip
    stated = hlo.parse(
        LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    )
    assert stated.trips(stated.computations["main"][2]) == 5
    unknown = hlo.parse(LOOP.replace("direction=LT", "direction=NE"))
    assert unknown.trips(unknown.computations["main"][2]) is None
    assert [times for _, times in unknown.scheduled()] == [1, 1, 1]
    once = hlo.parse(LOOP.replace("constant(7)", "constant(1)"))
    assert not once.loops


def test_a_program_of_jax_is_read_in_full():
    def f(x):
        return jax.lax.scan(lambda h, _: (jnp.sin(h @ h), None), x, length=11)[0]

    text = jax.jit(f).lower(jnp.ones((16, 16))).compile().as_text()
    module = hlo.parse(text)
    loops = [line for lines in module.computations.values() for line in lines if line.opcode == "while"]
    assert [module.trips(loop) for loop in loops] == [11]
    written = sum(" = " in line and "HloModule" not in line for line in text.splitlines())
    assert sum(map(len, module.computations.values())) == written


def test_a_text_without_entry_is_no_program():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("HloModule nothing\n")
