"""Tokenizers: captions as ids. `ByteTokenizer` uses the bytes of UTF-8, so there is no vocabulary to learn or load."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32

from jaxdiff.errors import UserError, expect

_log = logging.getLogger(__name__)
_warned: set[int] = set()  # lengths for which a cut text was reported in this process

PAD, END, FIRST_BYTE = 0, 1, 3
"""Ids of padding and of the end, and of the byte 0. Id 2 is ByT5's "unknown", which never occurs."""

IDS = FIRST_BYTE + 256
"""Number of ids."""

SPACE = FIRST_BYTE + ord(" ")
"""Id of a space."""

QUOTED = 40
"""Characters of a text that an error or a warning quotes."""


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back; a frozen dataclass.

    Attributes:
      length: ids of every text, its end and padding included.
    """

    @property
    def length(self) -> int: ...

    def encode(self, text: object, name: str = "text") -> Int32[np.ndarray, "length"]:
        """The ids of a text; `name` is for errors."""
        ...

    def encode_batch(self, texts: Sequence[object], name: str = "text") -> Int32[np.ndarray, "batch length"]:
        """The ids of several texts."""
        ...

    def decode(self, ids: Int[np.ndarray, "ids"]) -> str:
        """The text of ids."""
        ...

    def check(self, ids: np.ndarray, name: str = "text") -> None:
        """Raise `UserError` unless these are rows of ids as `encode_batch` returns them."""
        ...


class TextLength(NamedTuple):
    """How much of a text fits into the ids of a tokenizer.

    Attributes:
      needed: ids that the whole text needs, its begin and end included.
      length: ids that there are.
      lost: the end of the text, which does not fit; empty if all fits.
    """

    needed: int
    length: int
    lost: str


@runtime_checkable
class Measuring(Protocol):
    """A tokenizer that says what it cuts off."""

    def measure(self, text: object, name: str = "text") -> TextLength:
        """How much of a text fits."""
        ...


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """Byte tokenizer: each byte of UTF-8 plus 3, then an end, then padding (Xue et al. 2022, "ByT5").

    Nothing is normalised, and no part of a text has a special meaning: ``</s>`` is four bytes. A text that is too long
    loses full characters (code points) at its end. A process logs the first such text of each length as a warning.

    Attributes:
      length: ids of every text, the end included: ``length - 1`` bytes fit.
    """

    length: int

    def __post_init__(self):
        expect(self.length > 1, "length", self.length, "2 or more, since the end takes one id", "try 128")

    def encode(self, text: object, name: str = "text") -> Int32[np.ndarray, "length"]:
        """The ids of a str, or of UTF-8 as bytes. `name` is for errors.

        Raises:
          UserError: another type; bytes that are not UTF-8, or characters without an encoding (lone surrogates).
        """
        raw = utf8(text, name)
        room = self._room(raw)
        if len(raw) > room:
            _warn_cut(self.length, raw, room)
        kept = np.frombuffer(raw[:room], np.uint8).astype(np.int32)
        ids = np.full(self.length, PAD, np.int32)
        ids[: len(kept)] = kept + FIRST_BYTE
        ids[len(kept)] = END
        return ids

    def encode_batch(self, texts: Sequence[object], name: str = "text") -> Int32[np.ndarray, "batch length"]:
        """The ids of several texts; an error names the text by its index."""
        rows = [self.encode(text, f"{name}[{i}]") for i, text in enumerate(texts)]
        return np.stack(rows) if rows else np.empty((0, self.length), np.int32)

    def measure(self, text: object, name: str = "text") -> TextLength:
        """How much of a text fits."""
        raw = utf8(text, name)
        return TextLength(len(raw) + 1, self.length, raw[self._room(raw) :].decode())

    def _room(self, raw: bytes) -> int:
        """The number of bytes that fit: all, or those of full characters before the end."""
        room = self.length - 1
        if len(raw) <= room:
            return len(raw)
        while raw[room] & 0xC0 == 0x80:  # a byte inside a character
            room -= 1
        return room

    def decode(self, ids: Int[np.ndarray, "ids"]) -> str:
        """The text before the first end; the inverse of `encode`, unless the text was cut.

        Raises:
          UserError: ids out of range, or whose bytes are not UTF-8.
        """
        ends = np.flatnonzero(ids == END)
        given = ids[: ends[0]] if ends.size else ids[ids != PAD]
        wrong = given[(given < FIRST_BYTE) | (given >= IDS)]
        if wrong.size:
            raise UserError(
                f"ids={wrong[0]}: expected the id of a byte, {FIRST_BYTE} to {IDS - 1}, got {wrong[0]}. "
                "Fix: give ids that `encode` returns"
            )
        return utf8((given - FIRST_BYTE).astype(np.uint8).tobytes(), "ids").decode()

    def check(self, ids: np.ndarray, name: str = "text") -> None:
        """Raise `UserError` unless these are rows of ids [n, length] with one end, and padding after it only."""
        fix = f"give strings, or ids [n, {self.length}] of ByteTokenizer({self.length})"
        if not np.issubdtype(ids.dtype, np.integer) or ids.shape[1:] != (self.length,):
            got = f"{ids.dtype}{list(ids.shape)}"
            raise UserError(f"{name}={got}: expected texts or their ids, got {got}. Fix: {fix}")
        wrong = ids[(ids < 0) | (ids >= IDS)]
        if wrong.size:
            raise UserError(
                f"{name}={wrong[0]}: expected ids from 0 to {IDS - 1}, got {wrong[0]}. Fix: {fix}"
            )
        end = np.argmax(ids == END, axis=1)[:, None]  # 0 where there is none
        position = np.arange(self.length)
        valid = ((ids == END) == (position == end)) & ((ids == PAD) == (position > end))
        bad = np.flatnonzero(~np.all(valid, axis=1))
        if bad.size:
            raise UserError(
                f"{name}[{bad[0]}]={ids[bad[0]].tolist()}: expected one end and then padding, got other ids. Fix: {fix}"
            )


@dataclasses.dataclass(frozen=True)
class Tokenize:
    """Tokenize: replaces the text of an example by its ids. Of several captions one is drawn each time.

    Attributes:
      tokenizer: text to ids; must be the same in the condition `jaxdiff.conditioning.text.Text`.
      field: the field with the text: str, UTF-8 bytes, or a sequence of these.
    """

    tokenizer: Tokenizer
    field: str = "text"

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return self.result(example, self.choose(self.count(example), rng))

    def count(self, example: dict[str, Any]) -> int:
        """The number of captions."""
        return len(self._captions(example))

    def choose(self, count: int, rng: np.random.Generator) -> int:
        return int(rng.integers(count))

    def result(self, example: dict[str, Any], choice: int) -> dict[str, Any]:
        """The example with the ids of one of its captions."""
        text = self._captions(example)[choice]
        return {**example, self.field: self.tokenizer.encode(text, self._name(example))}

    def _captions(self, example: dict[str, Any]) -> Sequence[object]:
        fields = ", ".join(example)
        expect(self.field in example, "field", self.field, "a field of the examples", f"use one of {fields}")
        text = example[self.field]
        if isinstance(text, np.ndarray):
            text = text.tolist()
        if not isinstance(text, list | tuple):
            return [text]
        expect(len(text) > 0, self._name(example), text, "a caption", "leave this example out", "none")
        return text

    def _name(self, example: dict[str, Any]) -> str:
        return f"index={example['index']}: {self.field}"


def utf8(text: object, name: str) -> bytes:
    """The bytes of a text, validated as UTF-8."""
    if not isinstance(text, str | bytes):
        raise UserError(
            f"{name}={text!r}: expected a text, got {type(text).__name__}. Fix: give a str, or UTF-8 as bytes"
        )
    try:
        if isinstance(text, str):
            return text.encode()
        text.decode()
        return bytes(text)
    except UnicodeEncodeError as error:
        character = f"U+{ord(error.object[error.start]):04X}"
        got, fix = f"{character}, half of a surrogate pair, as character {error.start}", "remove it"
    except UnicodeDecodeError as error:
        got, fix = f"another byte at {error.start}", "encode it as UTF-8"
    raise UserError(f"{name}={_quoted(text)}: expected UTF-8, got {got}. Fix: {fix}")


def _warn_cut(length: int, raw: bytes, room: int) -> None:
    """Log a text of `raw` bytes that is cut to `room`, the first of each length in this process."""
    if length in _warned:
        return
    _warned.add(length)
    _log.warning(
        "a text of %d bytes was cut to %d, since length=%d: %s lost %s; further cuts are not reported",
        len(raw), room, length, _quoted(raw.decode()), _quoted(raw[room:].decode()),
    )  # fmt: skip


def _quoted(text: str | bytes) -> str:
    return repr(text[:QUOTED]) + ("..." if len(text) > QUOTED else "")
