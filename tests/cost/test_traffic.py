"""Bytes that programs move: closed forms for programs written by hand, and XLA's own count for one of JAX."""

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.cost import hlo
from jaxdiff.cost.traffic import traffic

A = 4 * 64 * 256
"""Bytes of f32[64,256], which tiles of 8 x 128 fill."""

ROWS, COLUMNS = "f32[64,256]{1,0:T(8,128)}", "f32[64,256]{0,1:T(8,128)}"
FAST = "f32[64,256]{1,0:T(8,128)S(1)}"
P, Q = f"%p = {ROWS} parameter(0)", f"%q = {ROWS} parameter(1)"


def of(*lines, computations=""):
    body = "\n".join(f"  {line}" for line in lines)
    return traffic(
        hlo.parse(f"HloModule m\n{computations}\nENTRY %main (p: f32[]) -> f32[] {{\n{body}\n}}\n")
    )


def test_an_operation_reads_its_operands_and_writes_its_result():
    found = of(P, Q, f"ROOT %sum = {ROWS} add(%p, %q)")
    assert (found.accessed, found.memory, found.padding, found.relayouts) == (3 * A, 3 * A, 0, 0)
    renamed = of(P, f"%same = {ROWS} bitcast(%p)", f"ROOT %both = ({ROWS}, {ROWS}) tuple(%p, %same)")
    assert (renamed.accessed, renamed.memory) == (0, 0)


def test_arrays_in_the_fast_memory_do_not_count_as_memory():
    found = of(P, f"%q = {FAST} sine(%p)", f"ROOT %r = {FAST} add(%q, %q)")
    assert (found.accessed, found.memory) == (5 * A, A)


def test_padding_is_what_tiles_add():
    narrow = "f32[64,4]{1,0:T(8,128)}"
    found = of(f"%p = {narrow} parameter(0)", f"ROOT %r = {narrow} sine(%p)")
    assert (found.accessed, found.memory, found.padding) == (2 * 1024, 2 * 4 * 64 * 128, 2 * 4 * 64 * 124)


def test_a_copy_into_another_layout_is_a_relayout_and_a_prefetch_is_none():
    turned = of(P, f"ROOT %r = {COLUMNS} copy(%p)")
    assert (turned.relayouts, turned.relayout_bytes, turned.accessed) == (1, 2 * A, 2 * A)
    assert of(P, f"ROOT %r = {FAST} copy(%p)").relayouts == 0
    fetched = of(
        P, f"%s = ({FAST}, {ROWS}, u32[]{{:S(2)}}) copy-start(%p)", f"ROOT %d = {FAST} copy-done(%s)"
    )
    assert (fetched.relayouts, fetched.accessed, fetched.memory) == (0, 2 * A + 4, A)
    assert of(P, "ROOT %r = f32[256,64]{1,0:T(8,128)} transpose(%p), dimensions={1,0}").relayouts == 1


FUSION = """
%inside (a: f32[], b: s32[]) -> f32[] {{
  %a = {0} parameter(0)
  %b = s32[] parameter(1)
{1}
}}
"""
CALL = "kind=kLoop, calls=%inside"


def fused(*inside, result=ROWS):
    body = FUSION.format(ROWS, "\n".join(f"  {line}" for line in inside))
    lines = (P, "%i = s32[]{:S(6)} parameter(1)", f"ROOT %f = {result} fusion(%p, %i), {CALL}")
    return of(*lines, computations=body)


def test_a_fusion_of_moves_alone_is_a_relayout():
    moved = fused(f"%c = {COLUMNS} copy(%a)", f"ROOT %t = {COLUMNS} bitcast(%c)", result=COLUMNS)
    assert (moved.relayouts, moved.relayout_bytes) == (1, 2 * A + 4)
    computed = fused(f"%c = {COLUMNS} copy(%a)", f"ROOT %t = {COLUMNS} sine(%c)", result=COLUMNS)
    assert computed.relayouts == 0


def test_a_fusion_reads_of_an_array_what_it_slices():
    row = "f32[1,256]{1,0:T(8,128)}"
    found = fused(f"ROOT %s = {row} dynamic-slice(%a, %b, %b), dynamic_slice_sizes={{1,256}}", result=row)
    assert found.accessed == 2 * 1024 + 4


def test_an_update_in_place_writes_its_part():
    row = "f32[1,256]{1,0:T(8,128)}"
    found = fused(
        f"%u = {row} broadcast(%b), dimensions={{}}",
        f"ROOT %s = {ROWS} dynamic-update-slice(%a, %u, %b, %b)",
    )
    assert found.accessed == 1024 + 4


def test_what_a_fusion_hands_on_does_not_move():
    both = f"({ROWS}, {ROWS})"
    found = fused(
        f"%n = {ROWS} broadcast(%b), dimensions={{}}", f"ROOT %t = {both} tuple(%a, %n)", result=both
    )
    assert found.accessed == A + 4


LOOP = f"""
%condition (s: (s32[], f32[64,256])) -> pred[] {{
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%counter, %limit), direction=LT
}}

%body (s: (s32[], f32[64,256])) -> (s32[], f32[64,256]) {{
  %x = {ROWS} get-tuple-element(%s), index=1
  %y = {COLUMNS} copy(%x)
  ROOT %both = (s32[], {COLUMNS}) tuple(%i, %y)
}}
"""


def test_what_a_loop_moves_counts_as_often_as_it_runs():
    loop = f"ROOT %loop = (s32[], {ROWS}) while(%p), condition=%condition, body=%body"
    found = of(P, loop, computations=LOOP)
    assert (found.relayouts, found.relayout_bytes) == (5, 5 * 2 * A)
    assert found.accessed == 5 * (2 * A + 4 + 1)  # the condition reads its constant and writes its truth


@pytest.mark.parametrize(
    "f", [lambda x: jnp.sin(x) @ x.T, lambda x: jnp.cumsum(x * 2, 0)], ids=["product", "sum"]
)
def test_the_count_is_near_that_of_xla(f):
    program = jax.jit(f).lower(jnp.ones((64, 32))).compile()
    found = traffic(hlo.parse(program.as_text()))
    assert found.accessed == pytest.approx(program.cost_analysis()["bytes accessed"], rel=0.3)
