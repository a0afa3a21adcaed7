"""Captions as numbers: the bytes of their UTF-8, with no vocabulary to learn or to load."""

import dataclasses
import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from jaxdiff.errors import UserError, require

_log = logging.getLogger(__name__)
_lock = threading.Lock()  # of all counts: a tokenizer is copied and stored like a plain value

PAD, END, FIRST_BYTE = 0, 1, 3
"""Ids of what is no byte, and of the byte 0. Id 2 is ByT5's "unknown", which no text has."""

IDS = FIRST_BYTE + 256
SPACE = FIRST_BYTE + ord(" ")
"""How many ids there are."""

SHOWN = 40
"""Characters of a text that an error or a warning quotes."""


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """Text to ids and back: each byte of UTF-8 plus 3, then an end, then padding (Xue et al. 2022, "ByT5").

    Nothing is normalised, and nothing in a text has a meaning of its own: ``</s>`` is four bytes. A text that is too
    long loses whole characters (code points) at its end. The first such loss is logged as a warning, all are counted.

    Attributes:
      length: ids of every text, the end included: ``length - 1`` bytes fit.
    """

    length: int
    _count: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"cut": 0}, init=False, repr=False, compare=False
    )

    def __post_init__(self):
        require(self.length > 1, "length", self.length, "the end takes one id", "give at least 2")

    def encode(self, text: object, name: str = "text") -> Int32[np.ndarray, "length"]:
        """The ids of a str, or of UTF-8 as bytes. `name` is for errors.

        Raises:
          UserError: it is no text; bytes that are no UTF-8, or characters that have none (lone surrogates).
        """
        raw = _utf8(text, name)
        room = self.length - 1
        if len(raw) > room:
            while raw[room] & 0xC0 == 0x80:  # a byte inside a character
                room -= 1
            self._note(raw, room)
        kept = np.frombuffer(raw[:room], np.uint8).astype(np.int32)
        ids = np.full(self.length, PAD, np.int32)
        ids[: len(kept)] = kept + FIRST_BYTE
        ids[len(kept)] = END
        return ids

    def encode_batch(self, texts: Sequence[object], name: str = "text") -> Int32[np.ndarray, "batch length"]:
        """The ids of several texts; an error names the text by its place."""
        rows = [self.encode(text, f"{name}[{i}]") for i, text in enumerate(texts)]
        return np.stack(rows) if rows else np.empty((0, self.length), np.int32)

    def decode(self, ids: Int[np.ndarray, "ids"]) -> str:
        """The text before the first end; the inverse of `encode`, as far as nothing was cut.

        Raises:
          UserError: ids that are none, or whose bytes are no UTF-8.
        """
        ends = np.flatnonzero(ids == END)
        given = ids[: ends[0]] if ends.size else ids[ids != PAD]
        wrong = given[(given < FIRST_BYTE) | (given >= IDS)]
        if wrong.size:
            raise UserError(f"ids={wrong[0]}: it stands for no byte. Fix: give ids that `encode` has made")
        return _utf8((given - FIRST_BYTE).astype(np.uint8).tobytes(), "ids").decode()

    @property
    def cut(self) -> int:
        """How many texts were too long so far."""
        return self._count["cut"]

    def _note(self, raw: bytes, room: int) -> None:
        with _lock:
            self._count["cut"] += 1
            first = self._count["cut"] == 1
        if first:
            _log.warning(
                "a text of %d bytes was cut to %d, since length=%d: %s lost %s; later cuts are only counted",
                len(raw), room, self.length, _quoted(raw.decode()), _quoted(raw[room:].decode()),
            )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tokenize:
    """Captions of examples as the ids of a `ByteTokenizer`, in place of the text.

    Of several captions one is drawn, each time anew.

    Attributes:
      length: ids of every text; that of the condition `jaxdiff.conditioning.text.Text`.
      field: where an example has its text: str, UTF-8 bytes, or a sequence of these.
      tokenizer: does it, and counts what it had to cut (in this process).
    """

    length: int
    field: str = "text"
    tokenizer: ByteTokenizer = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        # Frozen, and made at once: threads share it, so that all cuts are counted in one place.
        object.__setattr__(self, "tokenizer", ByteTokenizer(self.length))

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        fix = f"use one of {', '.join(example)}"
        require(self.field in example, "field", self.field, "examples lack it", fix)
        text = example[self.field]
        name = f"index={example['index']}: {self.field}"
        if isinstance(text, np.ndarray):
            text = text.tolist()
        if isinstance(text, list | tuple):
            require(len(text) > 0, name, text, "there is no caption", "leave this example out")
            text = text[rng.integers(len(text))]
        return {**example, self.field: self.tokenizer.encode(text, name)}


def _utf8(text: object, name: str) -> bytes:
    """The bytes of a text, seen to be UTF-8."""
    if not isinstance(text, str | bytes):
        raise UserError(f"{name}={text!r}: it is no text. Fix: give a str, or UTF-8 as bytes")
    try:
        if isinstance(text, str):
            return text.encode()
        text.decode()
        return bytes(text)
    except UnicodeEncodeError as error:
        character = f"U+{ord(error.object[error.start]):04X}"
        why, fix = f"character {error.start} is {character}, half of a surrogate pair", "remove it"
    except UnicodeDecodeError as error:
        why, fix = f"at byte {error.start} it is no UTF-8", "encode it as UTF-8"
    raise UserError(f"{name}={_quoted(text)}: {why}. Fix: {fix}")


def _quoted(text: str | bytes) -> str:
    return repr(text[:SHOWN]) + ("..." if len(text) > SHOWN else "")
