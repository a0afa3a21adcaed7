"""Optimised programs of XLA as text (HLO), read into instructions: no heavy imports, and no XLA.

The text is that of ``compiled.as_text()``. Types may have a layout: ``bf16[8,32]{1,0:T(8,128)(2,1)S(1)}`` is stored
row by row, in tiles of 8 x 128, in memory space 1. Space 0, the default, is the device's large memory (HBM).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

CALLERS = ("while", "conditional", "call")
"""Instructions whose computations run one instruction after another, as the entry does."""

FREE = (
    *CALLERS,
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "optimization-barrier",
)
"""Instructions that move no bytes."""

_LINE = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) .*-> .*\{\s*$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(
    r"\b(?:calls|body|condition|true_computation|false_computation|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_APPLIED = re.compile(r"\bto_apply=(%?[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_TARGET = re.compile(r'\bcustom_call_target="([^"]*)"')
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a type.

    Attributes:
      dtype: as in the text, such as bf16.
      shape: sizes of the axes.
      order: axes from the fastest to the slowest in memory; empty for the default order.
      tiles: sizes of the first tile, such as (8, 128); empty for none.
      space: number of the memory space.
      layout: the layout's text without the memory space.
    """

    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...] = ()
    tiles: tuple[int, ...] = ()
    space: int = 0
    layout: str = ""

    @property
    def bytes(self) -> int:
        """Bytes of the numbers."""
        return math.ceil(math.prod(self.shape) * bits(self.dtype) / 8)

    @property
    def padded(self) -> int:
        """Bytes in memory: the axes that the tile covers are rounded up to it."""
        order = self.order or tuple(reversed(range(len(self.shape))))
        sizes = [self.shape[axis] for axis in reversed(order)]
        for i, tile in enumerate(reversed(self.tiles[-len(sizes) :] if sizes else ())):
            sizes[-1 - i] = -(-sizes[-1 - i] // tile) * tile
        return math.ceil(math.prod(sizes) * bits(self.dtype) / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      type: as text, see `arrays`.
      operands: names of instructions of the same computation.
      inputs: what stands between the brackets: operands, or the number of a parameter.
      called: names of computations. Functions of numbers are left out, such as the sum of an all-reduce.
      rest: all that follows the operands.
      root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    inputs: str
    called: tuple[str, ...]
    rest: str
    root: bool = False

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of its result; several for a tuple."""
        return arrays(self.type)

    @property
    def moves_nothing(self) -> bool:
        """Whether it only gives arrays another name."""
        return self.opcode in FREE or self.target == "ConcatBitcast" or self.opcode.endswith("-done")

    @property
    def target(self) -> str:
        """What a custom call runs; empty for other instructions."""
        found = _TARGET.search(self.rest)
        return found[1] if found else ""

    @property
    def channel(self) -> str | None:
        """The number that all parts of one collective share; None without one."""
        found = _CHANNEL.search(self.rest)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: instructions by computation, in the order in which they run."""

    computations: dict[str, list[Instruction]]
    entry: str

    def scheduled(self) -> Iterator[tuple[list[Instruction], int]]:
        """The computations that run line by line, each with how often; a loop of unknown length counts once."""
        yield from self._scheduled(self.entry, 1)

    def _scheduled(self, name: str, times: int) -> Iterator[tuple[list[Instruction], int]]:
        lines = self.computations.get(name, [])
        yield lines, times
        for line in lines:
            if line.opcode in CALLERS:
                for inner in line.called:
                    yield from self._scheduled(inner, times * (self.trips(line) or 1))

    @property
    def loops(self) -> bool:
        """Whether some loop may run more than once."""
        lines = (line for lines in self.computations.values() for line in lines)
        return any(line.opcode == "while" and self.trips(line) != 1 for line in lines)

    def trips(self, line: Instruction) -> int | None:
        """How often a loop runs; None if it is unknown, or for another instruction.

        The compiler says so, or the condition compares a counter with a constant, as that of a scan does.
        """
        if stated := _TRIPS.search(line.rest):
            return int(stated[1])
        condition = _CONDITION.search(line.rest)
        lines = self.computations.get(condition[1], []) if condition else []
        compared = next((each for each in lines if each.root and "direction=LT" in each.rest), None)
        limits = [each.inputs for each in lines if compared and each.name in compared.operands[1:]]
        return int(limits[0]) if limits and limits[0].isdecimal() else None

    def inside(self, line: Instruction) -> Iterator[Instruction]:
        """All instructions of the computations that a line calls, directly or through others."""
        for name in line.called:
            for inner in self.computations.get(name, []):
                yield inner
                yield from self.inside(inner)


def parse(text: str) -> Module:
    """The instructions of a program's text.

    Raises:
      ValueError: the text has no entry.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if match := _LINE.match(line):
            lines.append(_instruction(*match.groups()))
        elif match := _HEAD.match(line):
            lines = computations[match[2]] = []
            entry = match[2] if match[1] else entry
    if not entry:
        raise ValueError("expected the text of an HLO module, got one without ENTRY")
    return Module(computations, entry)


@functools.lru_cache(100_000)
def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type; tokens and empty tuples are none."""
    return tuple(_array(*match.groups()) for match in _ARRAY.finditer(text) if match[1] != "token")


def bits(dtype: str) -> int:
    """Bits of one number of a type of XLA: 16 for bf16, 4 for s4, 8 for pred and f8e4m3fn."""
    if dtype == "pred":
        return 8
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) if found else 0


def total(found: Sequence[Array]) -> int:
    """Bytes of the numbers of several arrays."""
    return sum(array.bytes for array in found)


def _array(dtype: str, shape: str, layout: str | None) -> Array:
    order, _, memory = (layout or "").partition(":")
    tile, space = re.search(r"T\(([\d,]+)\)", memory), re.search(r"S\((\d+)\)", memory)
    return Array(
        dtype,
        _numbers(shape),
        _numbers(order),
        _numbers(tile[1]) if tile else (),
        int(space[1]) if space else 0,
        re.sub(r"S\(\d+\)", "", layout or ""),
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def _instruction(root: str | None, name: str, kind: str, opcode: str, rest: str) -> Instruction:
    end = _closing(rest)
    inputs, after = rest[:end], rest[end:]
    called = _CALLED.findall(after) + (_APPLIED.findall(after) if opcode == "call" else [])
    names = tuple(each.strip("%{} ") for group in called for each in group.split(","))
    return Instruction(
        name, opcode, kind, tuple(_NAME.findall(inputs)), inputs, names, after, root is not None
    )


def _closing(text: str) -> int:
    """The position of the bracket that closes the operands."""
    depth = 1
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)
