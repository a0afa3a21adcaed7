"""Bytes that a compiled program moves: to and from the large memory of a device, in padding, and in new layouts."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from jaxdiff.cost.collectives import KINDS
from jaxdiff.cost.hlo import Array, Instruction, Module, total

MOVING = ("copy", "transpose", "reshape")
"""Instructions that change the layout of an array. A reshape that moves nothing is a bitcast in optimised programs."""

SLICING = ("dynamic-slice", "slice", "gather")

HANDED_ON = ("parameter", *KINDS)
"""Parts of a fusion's result that it does not compute: TPUs hand a collective on from fusion to fusion."""

BESIDE = ("parameter", "bitcast", "tuple", "get-tuple-element", "constant")


@dataclasses.dataclass
class Traffic:
    """Bytes of one step on one device; what is in a loop counts as often as it runs.

    Attributes:
      accessed: read and written, in all memories.
      memory: of these, in the large memory (HBM), with the padding of its tiles.
      padding: of `memory`, padding.
      relayouts: number of copies into another layout, and of transposes. Those inside a computation do not count.
      relayout_bytes: read and written by these.
    """

    accessed: int = 0
    memory: int = 0
    padding: int = 0
    relayouts: int = 0
    relayout_bytes: int = 0


def traffic(module: Module) -> Traffic:
    """The bytes that a program moves."""
    found = Traffic()
    for lines, times in module.scheduled():
        known = {line.name: line for line in lines}
        for line in lines:
            if line.moves_nothing:
                continue
            moved = list(_moved(module, line, known))
            large = [array for array in moved if array.space == 0]
            found.accessed += times * total(moved)
            found.memory += times * sum(array.padded for array in large)
            found.padding += times * sum(array.padded - array.bytes for array in large)
            if _is_relayout(module, line, known):
                found.relayouts += times
                found.relayout_bytes += times * total(moved)
    return found


def _moved(module: Module, line: Instruction, known: Mapping[str, Instruction]) -> Iterator[Array]:
    """Arrays that a line reads and writes. The type of a ``-start`` holds source and destination."""
    if line.opcode.endswith("-start"):
        yield from line.arrays
        return
    body = module.computations.get(line.called[0], []) if line.opcode == "fusion" and line.called else []
    yield from _written(line, {each.name: each for each in body} if body else known, body)
    for position, name in enumerate(line.operands):
        if name in known:
            yield from _read(body, position, known[name].arrays)


def _written(
    line: Instruction, known: Mapping[str, Instruction], body: Sequence[Instruction]
) -> tuple[Array, ...]:
    """What a line writes: all of its result, or what it updates in place, or what it does not hand on unchanged."""
    root = next((each for each in body if each.root), line)
    if root.opcode == "dynamic-update-slice" and len(root.operands) > 1 and root.operands[1] in known:
        return known[root.operands[1]].arrays
    if root.opcode != "tuple" or not body:
        return line.arrays
    made = [known[name] for name in root.operands if name in known]
    return tuple(array for each in made if each.opcode not in HANDED_ON for array in each.arrays)


def _read(body: Sequence[Instruction], position: int, whole: tuple[Array, ...]) -> tuple[Array, ...]:
    """What a fusion reads of an operand: slices, if these are all that it uses; nothing of what it updates in place."""
    names = {line.name for line in body if line.opcode == "parameter" and line.inputs == str(position)}
    uses = [line for line in body if names & {*line.operands}]
    first = [line.opcode for line in uses if line.operands[0] in names]
    if uses and len(first) == len(uses) and all(opcode in SLICING for opcode in first):
        return tuple(array for line in uses for array in line.arrays)
    in_place = [line.opcode == "dynamic-update-slice" and line.operands[0] in names for line in uses]
    handed_on = [line.opcode in ("tuple", *KINDS) for line in uses]
    return () if uses and (all(in_place) or all(handed_on)) else whole


def _is_relayout(module: Module, line: Instruction, known: Mapping[str, Instruction]) -> bool:
    if line.opcode == "fusion":
        inside = list(module.inside(line))
        moving = any(each.opcode in MOVING for each in inside)
        return moving and all(each.opcode in (*MOVING, *BESIDE) for each in inside)
    if line.opcode == "copy":
        source = known.get(line.operands[0]) if line.operands else None
        return source is not None and [a.layout for a in source.arrays] != [a.layout for a in line.arrays]
    return line.opcode in MOVING
