"""Collectives of a compiled program: how many of each kind, their bytes, and whether computation hides them."""

import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence

from jaxdiff.cost.hlo import Array, Instruction, Module, total

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
BETWEEN_SLICES = "between slices"
"""Kind of what leaves a slice: the host of a TPU sends it over the data centre's network."""

COMPUTING = ("fusion", "convolution", "dot", "custom-call", "while", "conditional", "call")
"""Instructions that take long enough to hide a collective."""

_MEGASCALE = re.compile("is_host_transfer=true.*megascale")


@dataclasses.dataclass
class Found:
    """Collectives of one kind on one device.

    Attributes:
      count: how many run in a step; those in a loop count as often as it runs.
      bytes: of the larger of operand and result, summed.
      overlapped, overlapped_bytes: of these, those during which something is computed.
    """

    count: int = 0
    bytes: int = 0
    overlapped: int = 0
    overlapped_bytes: int = 0

    def add(self, times: int, size: int, hidden: bool) -> None:
        self.count += times
        self.bytes += times * size
        self.overlapped += times * hidden
        self.overlapped_bytes += times * size * hidden


def collectives(module: Module) -> dict[str, Found]:
    """The collectives of a program by kind, the largest first.

    An asynchronous one is a pair of instructions, ``-start`` and ``-done``; it is overlapped if something is computed
    between them. TPUs also fuse parts of one collective with computations; all parts have one number, and count once.
    """
    found: dict[str, Found] = collections.defaultdict(Found)
    for lines, times in module.scheduled():
        seen: dict[str, tuple[str, int, bool]] = {}
        for at, line in enumerate(lines):
            for number, kind, size, hidden in _of_line(module, lines, at, line):
                _, before, overlapped = seen.get(number, (kind, 0, False))
                seen[number] = kind, max(size, before), hidden or overlapped
        for kind, size, hidden in seen.values():
            found[kind].add(times, size, hidden)
    return dict(sorted(found.items(), key=lambda item: -item[1].bytes))


def _of_line(
    module: Module, lines: Sequence[Instruction], at: int, line: Instruction
) -> Iterator[tuple[str, str, int, bool]]:
    """(number, kind, bytes, overlapped) of the collectives that a line starts."""
    if line.opcode == "send" and _MEGASCALE.search(line.rest):
        yield line.name, BETWEEN_SLICES, total(line.arrays[:1]), _computes_before_done(lines, at)
    elif kind := _kind(line.opcode):
        hidden = line.opcode.endswith("-start") and _computes_before_done(lines, at)
        yield line.channel or line.name, kind, _size(line, lines), hidden
    elif line.opcode == "fusion" or line.opcode == "async-start":
        inside = list(module.inside(line))
        hidden = line.opcode == "fusion" and _is_mixed(inside)
        hidden = hidden or (line.opcode == "async-start" and _computes_before_done(lines, at))
        for each in inside:
            if kind := _kind(each.opcode):
                yield each.channel or line.name, kind, _size(each, inside), hidden


def _kind(opcode: str) -> str:
    """The kind of a collective that this instruction starts; empty for any other."""
    name = opcode.removesuffix("-start")
    return name if name in KINDS else ""


def _size(line: Instruction, lines: Sequence[Instruction]) -> int:
    """Bytes of the larger of operand and result. The type of a ``-start`` holds both, and numbers without axes."""
    operands = total(_types(line, lines))
    if not line.opcode.endswith("-start"):
        return max(operands, total(line.arrays))
    held = total([array for array in line.arrays if array.shape])
    return max(operands, held - operands) if line.type.startswith("(") else max(operands, held)


def _types(line: Instruction, lines: Sequence[Instruction]) -> list[Array]:
    known = {each.name: each for each in lines if each.name in line.operands}
    return [array for name in line.operands if name in known for array in known[name].arrays]


def _computes_before_done(lines: Sequence[Instruction], at: int) -> bool:
    """Whether something is computed between the start of an asynchronous operation and its end."""
    name = lines[at].name
    for line in lines[at + 1 :]:
        if line.opcode.endswith("-done") and name in line.operands:
            return False
        if line.opcode in COMPUTING and line.target != "ConcatBitcast":
            return True
    return False


def _is_mixed(inside: Sequence[Instruction]) -> bool:
    """Whether a fusion computes something beside its collective."""
    return any(line.opcode in ("convolution", "dot", "multiply", "add", "fusion") for line in inside)
