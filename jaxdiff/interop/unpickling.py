"""Safe unpickling: reads a pickle as data, without running or importing anything that it names.

A pickle is a program for a small stack machine. Python's own machine imports the names in a program and calls them.
This one supports only the operations that data needs:

* A name is looked up in the caller's table. Other names are refused.
* A name is called only if the table has one of this package's functions for it. Any other object becomes an `Inert`:
  its name, its arguments and its state.
* State is stored in an `Inert` and nowhere else: no attribute is set, and no ``__setstate__`` is called.
* Dict keys are text, 64-bit integers, None or names, so hashing is cheap and calls no foreign code.
* Bytes are views of the file. Everything else is limited by a `Budget`: a million operations of less than 200 bytes
  each, and 32 MiB of text. So no file takes more than about 330 MB of memory (a character can take four bytes), or
  more than seconds.

Supports protocols 2 to 5: Python's defaults since 3.0, and all of PyTorch's files.
"""

import dataclasses
import pickle as op  # the names of its operations; nothing of it is called
import struct
from collections.abc import Callable, Mapping
from typing import Any

from jaxdiff.interop.files import Unreadable

_LONGEST_NAME = 512
_LONGEST_NUMBER = 16

# How numbers in a file are packed: values, the lengths of texts with their encoding, the lengths of bytes, and places
# in the memo. Strings of Python 2 are texts.
_NUMBERS = {op.BININT: "<i", op.BININT1: "<B", op.BININT2: "<H", op.BINFLOAT: ">d"}
_TEXTS = {
    op.SHORT_BINUNICODE: ("<B", "utf-8"), op.BINUNICODE: ("<I", "utf-8"),
    op.SHORT_BINSTRING: ("<B", "latin-1"), op.BINSTRING: ("<i", "latin-1"),
}  # fmt: skip
_BYTES = {op.SHORT_BINBYTES: "<B", op.BINBYTES: "<I", op.BINBYTES8: "<Q", op.BYTEARRAY8: "<Q"}
_INDICES = {op.BINPUT: "<B", op.LONG_BINPUT: "<I", op.BINGET: "<B", op.LONG_BINGET: "<I"}


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
    """A global name in a file.

    Attributes:
      module: module of the name.
      name: qualified name in the module.
      make: function of this package that replaces a call of the name; without one, a call makes an `Inert`.
    """

    module: str
    name: str
    make: Callable[..., Any] | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(slots=True, eq=False)
class Inert:
    """An object that was not constructed: its class or function, arguments and state."""

    of: Name
    args: tuple
    state: Any = None


@dataclasses.dataclass
class Budget:
    """Remaining resources for a file and all pickles nested in it.

    Attributes:
      operations: number of operations.
      text: bytes of text.
    """

    operations: int = 1_000_000
    text: int = 1 << 25

    def spend(self, operations: int = 0, text: int = 0) -> None:
        self.operations -= operations
        self.text -= text
        if self.operations < 0 or self.text < 0:
            raise Unreadable(
                "expected a pickle of ordinary size, got a larger one", "store its tensors as .safetensors"
            )


class Unpickler:
    """Reads one pickle that starts at byte `at` of `data`; afterwards `at` is the byte after its end.

    Args:
        data: the file, or a part of it.
        known: the allowed names.
        persistent: returns the object of a persistent id; without it, such ids are refused.
        budget: limits, common to all pickles of a file.
        at: first byte of the pickle.
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
        """The described object; raises `Unreadable` for malformed pickles and unsupported operations."""
        try:
            while (operation := bytes(self._take(1))) != op.STOP:
                self._budget.spend(operations=1)
                self._run(operation)
            return self._stack.pop()
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise Unreadable(f"expected a valid pickle, got {error} at byte {self.at}") from error

    def _run(self, operation: bytes) -> None:
        groups = (self._plain_value, self._container, self._named_object, self._book_keeping)
        if not any(group(operation) for group in groups):
            raise Unreadable(f"expected operations that weights need in its pickle, got {operation!r}")

    # Each group runs an operation of its own and returns True, or leaves others alone and returns False.

    def _plain_value(self, operation: bytes) -> bool:
        stack = self._stack
        match operation:
            case op.NONE:
                stack.append(None)
            case op.NEWTRUE | op.NEWFALSE:
                stack.append(operation == op.NEWTRUE)
            case op.LONG1:
                stack.append(self._long(self._number("<B")))
            case _ if operation in _NUMBERS:
                stack.append(self._number(_NUMBERS[operation]))
            case _ if operation in _TEXTS:
                length, encoding = _TEXTS[operation]
                stack.append(self._text(self._number(length), encoding))
            case _ if operation in _BYTES:
                stack.append(self._take(self._number(_BYTES[operation])))
            case _:
                return False
        return True

    def _container(self, operation: bytes) -> bool:
        stack = self._stack
        match operation:
            case op.EMPTY_LIST | op.EMPTY_SET:  # a set becomes a list: membership is never tested
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
            case _:
                return False
        return True

    def _named_object(self, operation: bytes) -> bool:
        stack = self._stack
        match operation:
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
            case _:
                return False
        return True

    def _book_keeping(self, operation: bytes) -> bool:
        stack, memo = self._stack, self._memo
        match operation:
            case op.BINPUT | op.LONG_BINPUT:
                memo[self._number(_INDICES[operation])] = stack[-1]
            case op.MEMOIZE:
                memo[len(memo)] = stack[-1]
            case op.BINGET | op.LONG_BINGET:
                stack.append(memo[self._number(_INDICES[operation])])
            case op.MARK:
                self._marks.append(len(stack))
            case op.POP:
                stack.pop()
            case op.POP_MARK:
                self._pop_from(self._marks.pop())
            case op.PROTO:
                self._take(1)
            case op.FRAME:  # a hint for buffered reading
                self._take(8)
            case _:
                return False
        return True

    def _find(self, module: Any, name: Any) -> Name:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a name that is not text")
        if (module, name) not in self._known:
            raise Unreadable(
                f"expected names that weights need, got {f'{module}.{name}'[:_LONGEST_NAME]!r}, which might run code; "
                "nothing was run",
                "get the weights as .safetensors, or store the state dict alone",
            )
        return self._known[module, name]

    def _call(self, of: Any, args: Any) -> Any:
        if not (isinstance(of, Name) and isinstance(args, tuple)):
            raise TypeError("a call of an object that cannot be called")
        return of.make(*args) if of.make else Inert(of, args)

    def _build(self, state: Any) -> None:
        target = self._stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict):  # the attributes of an OrderedDict are not needed
            raise TypeError("state of an object without state")

    def _load_persistent(self, key: Any) -> Any:
        if self._persistent is None:
            raise Unreadable("expected a self-contained pickle, got a reference to external data")
        return self._persistent(key)

    def _extend(self, items: tuple) -> None:
        if not isinstance(self._stack[-1], list):
            raise TypeError("items for an object that is not a list")
        self._stack[-1].extend(items)

    def _update(self, items: tuple) -> None:
        if not isinstance(self._stack[-1], dict):
            raise TypeError("keys for an object that is not a dict")
        if len(items) % 2:
            raise ValueError("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            short = isinstance(key, int) and abs(key) < 1 << 63
            if not (short or key is None or isinstance(key, str | Name)):
                raise TypeError(f"a key that is a {type(key).__name__}")
            self._stack[-1][key] = value

    def _pop_from(self, start: int) -> tuple:
        if not 0 <= start <= len(self._stack):
            raise IndexError("more items taken than there are")
        items = tuple(self._stack[start:])
        del self._stack[start:]
        return items

    def _take(self, count: int) -> memoryview:
        if not 0 <= count <= len(self._data) - self.at:
            raise Unreadable("expected a complete pickle, got a truncated one")
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
