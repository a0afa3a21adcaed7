"""Metadata of a weights file as plain data: numbers, text, lists and dicts."""

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
    """An entry has more values than metadata."""


def describe(content: Any) -> dict[str, Any]:
    """The entries of a dict that are plain data, or objects that consist of plain data.

    An inert object becomes a dict of its ``class_name``, its ``attributes``, and its ``init_args`` and ``init_kwargs``
    if the file has them (EDM's do). Names become text, NumPy arrays become lists. Tensors are omitted, as are entries
    with more than 10,000 values, such as the state of an optimizer.
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
    """Copies plain data; raises `_TooMuch` at the limit of `room` values."""

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
        found = {"class_name": value.of.name}
        for name in ("init_args", "init_kwargs"):
            if state.get(f"_{name}") is not None:
                found[name] = self.of(state[f"_{name}"], level + 1)
        public = {name: inner for name, inner in state.items() if isinstance(name, str) and name[:1] != "_"}
        attributes = self.of(public, level + 1)
        return found | {"attributes": attributes} if public and attributes is not _NOTHING else found

    def _numbers(self, value: Inert) -> Any:
        """A NumPy array or scalar as a list or number, from its pickled form."""
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
        self._spend(numbers.size)  # before `reshape`, whose shape may be of a billion empty rows
        return numbers.reshape(shape, order="F" if fortran else "C").tolist() if numbers.size else []

    def _spend(self, count: int) -> None:
        if self.spent + count > self._room:
            raise _TooMuch
        self.spent += count
