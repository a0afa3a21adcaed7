"""What a file says beside its tensors, as plain data: numbers, text, lists and dicts."""

import contextlib
import re
from typing import Any

import numpy as np

from jaxdiff.interop.unpickling import Inert, Name

_MOST_VALUES = 10_000
_MOST_IN_ALL = 300_000
_MOST_LEVELS = 32
_NUMPY_KIND = re.compile(r"[fiu][1248]|b1")


class _TooMuch(Exception):
    """An entry has more values than a description."""


def describe(content: Any) -> dict[str, Any]:
    """The entries of a dict that are plain data, or objects of it.

    An object that was not made is told by its ``class_name``, its ``init_args`` and ``init_kwargs`` where the file
    has them (EDM's do), and its ``attributes``. Names are text, arrays of numpy lists. Tensors, and entries of more
    than ten thousand values (the state of an optimizer), are left out.
    """
    found, room = {}, _MOST_IN_ALL
    for name, value in (content if isinstance(content, dict) else {"object": content}).items():
        plain = _Plain(min(room, _MOST_VALUES))
        with contextlib.suppress(_TooMuch):
            copy = plain.of(value)
            if isinstance(name, str) and copy is not _NOTHING:
                found[name] = copy
        room -= plain.spent
    return found


_NOTHING = object()


class _Plain:
    """Copies what is plain, and stops where it becomes too much."""

    def __init__(self, room: int):
        self.spent, self._room = 0, room

    def of(self, value: Any, level: int = 0) -> Any:
        self._spend(1)
        if level > _MOST_LEVELS:
            raise _TooMuch
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list | tuple):
            self._spend(len(value))
            items = [plain for item in value if (plain := self.of(item, level + 1)) is not _NOTHING]
            return items if items or not value else _NOTHING
        if isinstance(value, dict):
            self._spend(len(value))
            pairs = [
                (key, self.of(item, level + 1)) for key, item in value.items() if isinstance(key, str | int)
            ]
            entries = {key: plain for key, plain in pairs if plain is not _NOTHING}
            return entries if entries or not value else _NOTHING
        if isinstance(value, Name):
            return value.name
        if isinstance(value, Inert):
            return self._object(value, level)
        return _NOTHING

    def _object(self, value: Inert, level: int) -> Any:
        if value.of.name in ("_reconstruct", "scalar"):
            return self._numbers(value)
        state = value.state if isinstance(value.state, dict) else {}
        self._spend(len(state))
        told = {"class_name": value.of.name}
        for name in ("init_args", "init_kwargs"):
            if state.get(f"_{name}") is not None:
                told[name] = self.of(state[f"_{name}"], level + 1)
        public = {name: inner for name, inner in state.items() if isinstance(name, str) and name[:1] != "_"}
        attributes = self.of(public, level + 1)
        return told | {"attributes": attributes} if public and attributes is not _NOTHING else told

    def _numbers(self, value: Inert) -> Any:
        """An array or a number of numpy, from how numpy pickles them."""
        if value.of.name == "scalar":
            (kind, data), shape, fortran = value.args, (), False
        else:
            _, shape, kind, fortran, data = value.state
        name = kind.args[0] if isinstance(kind, Inert) and kind.of.name == "dtype" else None
        little = isinstance(kind, Inert) and isinstance(kind.state, tuple) and kind.state[1] in ("<", "|")
        if not (
            isinstance(name, str) and _NUMPY_KIND.fullmatch(name) and little and isinstance(data, memoryview)
        ):
            return _NOTHING
        numbers = np.frombuffer(data, np.dtype(name))
        self._spend(
            numbers.size
        )  # before the shape, which may be of a thousand million rows without an element
        return numbers.reshape(shape, order="F" if fortran else "C").tolist() if numbers.size else []

    def _spend(self, count: int) -> None:
        if self.spent + count > self._room:
            raise _TooMuch
        self.spent += count
