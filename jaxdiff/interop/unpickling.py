"""A pickle read as data. Nothing of it is run, and nothing is imported for it.

A pickle is a program for a small stack machine, and Python's own machine imports what a program names and calls
it. This one knows only the operations that data needs:

* A name is looked up in a table that the caller gives. A name that is not there is refused.
* What a name stands for is called only if the table says by which function of ours; any other object becomes an
  `Inert`, that is its name, its arguments and its state.
* State is put into an `Inert` and nowhere else: no attribute is set, no ``__setstate__`` looked for.
* Keys of dicts are text, whole numbers of 64 bits, None or names, so that hashing is cheap and never calls anything.
* Bytes are views of the file. Everything else is paid from a `Budget`: at most a million operations, each of
  which makes less than 200 bytes, and 32 MiB of text. So no file takes more than about 330 MB of memory
  (a character becomes up to four bytes), and none more than seconds.

Protocols 2 to 5, which is what Python has written by default since version 3.0, and PyTorch always.
"""

import dataclasses
import pickle as op  # the names of its operations; nothing of it is called
import struct
from collections.abc import Callable, Mapping
from typing import Any

from jaxdiff.interop.files import Unreadable

_LONGEST_NAME = 512
_LONGEST_NUMBER = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
    """A global name in a file. `make` is the function of ours that a call of it calls; without one it makes `Inert`."""

    module: str
    name: str
    make: Callable[..., Any] | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(slots=True, eq=False)
class Inert:
    """An object that was not made: what it would have been, from which arguments, and in which state."""

    of: Name
    args: tuple
    state: Any = None


@dataclasses.dataclass
class Budget:
    """What may still be spent on a file, with everything that is nested in it."""

    operations: int = 1_000_000
    text: int = 1 << 25

    def spend(self, operations: int = 0, text: int = 0) -> None:
        self.operations -= operations
        self.text -= text
        if self.operations < 0 or self.text < 0:
            raise Unreadable(
                "its pickle is larger than that of any model", "keep its tensors alone in a .safetensors"
            )


class Unpickler:
    """Reads one pickle that begins at byte `at` of `data`; afterwards `at` is where it ended.

    Args:
        data: the file, or a part of it.
        known: what its names stand for.
        persistent: gives the object that a persistent id names. Without it there must be none.
        budget: shared by all pickles of a file.
        at: where to begin.
    """

    def __init__(
        self,
        data: memoryview,
        known: Mapping[tuple[str, str], Name],
        persistent: Callable[[Any], Any] | None = None,
        budget: Budget | None = None,
        at: int = 0,
    ):
        self.at = at
        self._data, self._known, self._persistent = data, known, persistent
        self._budget = budget or Budget()
        self._stack, self._marks, self._memo = [], [], {}

    def load(self) -> Any:
        """What the pickle describes. Raises `Unreadable` for whatever this machine does not do."""
        try:
            while (operation := bytes(self._take(1))) != op.STOP:
                self._budget.spend(operations=1)
                self._run(operation)
            return self._stack.pop()
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise Unreadable(f"its pickle makes no sense at byte {self.at} ({error})") from error

    def _run(self, operation: bytes) -> None:
        stack, memo = self._stack, self._memo
        match operation:
            # Plain values.
            case op.NONE:
                stack.append(None)
            case op.NEWTRUE | op.NEWFALSE:
                stack.append(operation == op.NEWTRUE)
            case op.BININT:
                stack.append(self._number("<i"))
            case op.BININT1:
                stack.append(self._number("<B"))
            case op.BININT2:
                stack.append(self._number("<H"))
            case op.LONG1:
                stack.append(self._long(self._number("<B")))
            case op.BINFLOAT:
                stack.append(self._number(">d"))
            case op.SHORT_BINUNICODE:
                stack.append(self._text(self._number("<B")))
            case op.BINUNICODE:
                stack.append(self._text(self._number("<I")))
            case op.SHORT_BINSTRING:  # text of Python 2
                stack.append(self._text(self._number("<B"), "latin-1"))
            case op.BINSTRING:
                stack.append(self._text(self._number("<i"), "latin-1"))
            case op.SHORT_BINBYTES:
                stack.append(self._take(self._number("<B")))
            case op.BINBYTES:
                stack.append(self._take(self._number("<I")))
            case op.BINBYTES8 | op.BYTEARRAY8:
                stack.append(self._take(self._number("<Q")))
            # Containers. A set is a list: nobody asks whether something is in it.
            case op.EMPTY_LIST | op.EMPTY_SET:
                stack.append([])
            case op.EMPTY_TUPLE:
                stack.append(())
            case op.EMPTY_DICT:
                stack.append({})
            case op.TUPLE1 | op.TUPLE2 | op.TUPLE3:
                count = 1 + (op.TUPLE1, op.TUPLE2, op.TUPLE3).index(operation)
                stack.append(self._pop_from(len(stack) - count))
            case op.TUPLE | op.FROZENSET:
                stack.append(self._pop_from(self._marks.pop()))
            case op.APPEND:
                self._extend(self._pop_from(len(stack) - 1))
            case op.APPENDS | op.ADDITEMS:
                self._extend(self._pop_from(self._marks.pop()))
            case op.SETITEM:
                self._update(self._pop_from(len(stack) - 2))
            case op.SETITEMS:
                self._update(self._pop_from(self._marks.pop()))
            # Names, and objects of them.
            case op.GLOBAL:
                stack.append(self._find(self._line(), self._line()))
            case op.STACK_GLOBAL:
                stack.append(self._find(*self._pop_from(len(stack) - 2)))
            case op.REDUCE | op.NEWOBJ:
                stack.append(self._call(*self._pop_from(len(stack) - 2)))
            case op.BUILD:
                self._build(*self._pop_from(len(stack) - 1))
            case op.BINPERSID:
                stack.append(self._load_persistent(stack.pop()))
            # Book-keeping.
            case op.BINPUT:
                memo[self._number("<B")] = stack[-1]
            case op.LONG_BINPUT:
                memo[self._number("<I")] = stack[-1]
            case op.MEMOIZE:
                memo[len(memo)] = stack[-1]
            case op.BINGET:
                stack.append(memo[self._number("<B")])
            case op.LONG_BINGET:
                stack.append(memo[self._number("<I")])
            case op.MARK:
                self._marks.append(len(stack))
            case op.POP:
                stack.pop()
            case op.POP_MARK:
                self._pop_from(self._marks.pop())
            case op.PROTO:
                self._take(1)
            case op.FRAME:  # a hint of how much to read at once
                self._take(8)
            case _:
                raise Unreadable(f"its pickle has an operation {operation!r}, which no file of weights needs")

    def _find(self, module: Any, name: Any) -> Name:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a name that is not text")
        if (module, name) not in self._known:
            raise Unreadable(
                f"it wants {f'{module}.{name}'[:_LONGEST_NAME]!r}, which reading weights does not need and which "
                "might run code; nothing was run",
                "get the weights as .safetensors, or keep the state dict alone in a file",
            )
        return self._known[module, name]

    def _call(self, of: Any, args: Any) -> Any:
        if not (isinstance(of, Name) and isinstance(args, tuple)):
            raise TypeError("a call of what cannot be called")
        return of.make(*args) if of.make else Inert(of, args)

    def _build(self, state: Any) -> None:
        target = self._stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict):  # the attributes of an OrderedDict are of no use
            raise TypeError("state of what has none")

    def _load_persistent(self, key: Any) -> Any:
        if self._persistent is None:
            raise Unreadable("its pickle refers to something outside of it")
        return self._persistent(key)

    def _extend(self, items: tuple) -> None:
        if not isinstance(self._stack[-1], list):
            raise TypeError("items for what is no list")
        self._stack[-1].extend(items)

    def _update(self, items: tuple) -> None:
        if not isinstance(self._stack[-1], dict):
            raise TypeError("keys for what is no dict")
        if len(items) % 2:
            raise ValueError("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            short = isinstance(key, int) and abs(key) < 1 << 63
            if not (short or key is None or isinstance(key, str | Name)):
                raise TypeError(f"a key that is a {type(key).__name__}")
            self._stack[-1][key] = value

    def _pop_from(self, start: int) -> tuple:
        if not 0 <= start <= len(self._stack):
            raise IndexError("it takes what is not there")
        items = tuple(self._stack[start:])
        del self._stack[start:]
        return items

    def _take(self, count: int) -> memoryview:
        if not 0 <= count <= len(self._data) - self.at:
            raise Unreadable("it ends in the middle of its pickle")
        self.at += count
        return self._data[self.at - count : self.at]

    def _number(self, kind: str) -> Any:
        return struct.unpack(kind, self._take(struct.calcsize(kind)))[0]

    def _long(self, count: int) -> int:
        if count > _LONGEST_NUMBER:
            raise ValueError(f"a number of {count} bytes")
        return int.from_bytes(self._take(count), "little", signed=True)

    def _text(self, count: int, encoding: str = "utf-8") -> str:
        encoded = self._take(count)
        self._budget.spend(text=count)
        return str(encoded, encoding, "surrogatepass" if encoding == "utf-8" else "strict")

    def _line(self) -> str:
        length = bytes(self._data[self.at : self.at + _LONGEST_NAME]).index(b"\n")
        return str(self._take(length + 1)[:-1], "utf-8")
