"""Memory of a program under a compiler that fuses, from shapes alone: that of TPUs, which also stores arrays in tiles.

An elementwise operation is no array: whoever reads its result computes it again from what the operation reads. So a
normalisation and an activation between two convolutions leave one array for the backward pass. A result that has fewer
bytes than what it is computed from is stored, and ends the life of that. docs/plan.md compares this with the compiler.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Literal

from jaxdiff.cost.memory import array_bytes
from jaxdiff.cost.operations import programs_in

LANES, SUBLANES = 128, 8
"""Sides of a tile."""

SMALL = 2**17
"""Bytes below which arrays count without tiles: they fit into the fast memory."""

SLACK = 1.05
"""A result is stored if its sources have more than this many times its bytes; scales and shifts of channels are few."""

INLINED = (
    "jit",
    "pjit",
    "closed_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "checkpoint",
    "remat",
    "remat2",
)
"""Operations that are their one body."""

STORED = (
    "conv_general_dilated",
    "cumsum",
    "dot_general",
    "dynamic_update_slice",
    "gather",
    "random_bits",
    "reduce_max",
    "reduce_sum",
    "reduce_window_sum",
    "scatter",
    "scatter-add",
    "sort",
    "threefry2x32",
    "top_k",
)
"""Operations whose results are arrays."""


@dataclasses.dataclass(eq=False)
class _Value:
    """A result in a program.

    Attributes:
      bytes: in memory; 0 for one that the caller counts.
      sources: the arrays from which it is computed whenever it is read; itself if it is stored.
      last: position of the last operation that reads it.
    """

    bytes: int
    sources: "tuple[_Value, ...]" = ()
    last: int = -1


@dataclasses.dataclass(frozen=True)
class _Operation:
    name: str
    inputs: Sequence[_Value]
    outputs: Sequence[_Value]
    bodies: Sequence[Any]


def fused_bytes(program: ClosedJaxpr) -> int:
    """Peak bytes of the arrays that are alive at once, without inputs and outputs, as a fusing compiler stores them."""
    return _peak(program.jaxpr)


def tiled_bytes(array: Any) -> int:
    """Bytes of an array in tiles of 8 x 128, in the layout that pads the least."""
    size, shape = array_bytes(array), array.shape
    if len(shape) < 2 or size < SMALL:
        return size
    numbers = math.prod(shape)
    pairs = ((i, k) for i in range(len(shape)) for k in range(len(shape)) if i != k)
    padded = (
        numbers // (shape[i] * shape[k]) * _up(shape[i], LANES) * _up(shape[k], SUBLANES) for i, k in pairs
    )
    return min(padded) * array.dtype.itemsize


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _peak(jaxpr: Any) -> int:
    known: dict[Any, _Value] = {atom: _Value(0) for atom in (*jaxpr.invars, *jaxpr.constvars)}
    operations: list[_Operation] = []
    _flatten(jaxpr, known, operations)
    for atom in jaxpr.outvars:
        if not isinstance(atom, Literal):
            known[atom].bytes = 0
    for position, operation in enumerate(operations):
        _link(operation, position)
    return _sweep(operations)


def _flatten(jaxpr: Any, known: dict[Any, _Value], operations: list[_Operation]) -> None:
    """Append the operations of a program, with those of bodies in the place of their calls."""
    for eqn in jaxpr.eqns:
        inputs = [_Value(0) if isinstance(atom, Literal) else known[atom] for atom in eqn.invars]
        bodies = list(programs_in(eqn))
        if eqn.primitive.name in INLINED and len(bodies) == 1:
            (body,) = bodies
            inside = dict(zip(body.invars, inputs, strict=True)) | {
                atom: _Value(0) for atom in body.constvars
            }
            _flatten(body, inside, operations)
            results = [_Value(0) if isinstance(atom, Literal) else inside[atom] for atom in body.outvars]
        else:
            results = [_Value(tiled_bytes(atom.aval)) for atom in eqn.outvars]
            operations.append(_Operation(eqn.primitive.name, inputs, results, bodies))
        known.update(zip(eqn.outvars, results, strict=True))


def _link(operation: _Operation, position: int) -> None:
    """Find out which results are stored, and until when the arrays live that this operation reads."""
    sources = tuple(dict.fromkeys(source for value in operation.inputs for source in value.sources))
    for source in sources:
        source.last = position
    stored = operation.name in STORED or operation.bodies or len(operation.outputs) > 1
    for value in operation.outputs:
        kept = stored or sum(source.bytes for source in sources) > SLACK * value.bytes
        value.sources = ((value,) if value.bytes else ()) if kept else sources


def _sweep(operations: Sequence[_Operation]) -> int:
    live = peak = 0
    ending: dict[int, int] = collections.Counter()
    for position, operation in enumerate(operations):
        made = sum(value.bytes for value in operation.outputs if value.sources == (value,))
        # A loop allocates all its results at the start; a call allocates them inside.
        around = live + (made if operation.name == "scan" else 0)
        live += made
        peak = max(peak, live, around + max(map(_peak, operation.bodies), default=0))
        for value in operation.outputs:
            if value.sources == (value,):
                ending[max(value.last, position)] += value.bytes
        live -= ending[position]
    return peak
