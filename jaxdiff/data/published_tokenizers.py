"""Tokenizers of published models, read from the models' own files: CLIP's byte pairs, and T5's unigrams.

The ids are those of transformers' `CLIPTokenizer` and `T5Tokenizer`. Parentheses and all other signs are literal: no
part of a text is a weight.
"""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from jaxdiff.data.text import TextLength, utf8
from jaxdiff.data.tokenizer_files import Vocabulary, clip_vocabulary, t5_vocabulary
from jaxdiff.errors import UserError, between, expect, positive

_log = logging.getLogger(__name__)
_warned: set[tuple[int, str]] = set()  # room and text of each cut that was reported in this process
_MOST_WARNINGS = 20


class _Published:
    """What all tokenizers of published models have in common."""

    length: int

    def encode(self, text: object, name: str = "text") -> Int32[np.ndarray, "length"]:
        raise NotImplementedError

    def encode_batch(self, texts: Sequence[object], name: str = "text") -> Int32[np.ndarray, "batch length"]:
        """The ids of several texts; an error names the text by its index."""
        rows = [self.encode(text, f"{name}[{i}]") for i, text in enumerate(texts)]
        return np.stack(rows) if rows else np.empty((0, self.length), np.int32)


@dataclasses.dataclass(frozen=True)
class ClipTokenizer(_Published):
    """CLIP's tokenizer: byte pairs in lower case (Radford et al. 2021, section 2.4), from a model's own folder.

    A text becomes ``begin, tokens, end, padding``. Before, it is composed (NFC), runs of white space become one space,
    and letters lower case. Padding is what the folder names: the end in Stable Diffusion 1, "!" in 2 and in SDXL's
    second encoder. A text that is too long loses its last tokens, and a warning shows them.

    Attributes:
      folder: the model's ``tokenizer`` folder, with ``vocab.json`` and ``merges.txt``, or ``tokenizer.json``.
      chunks: number of windows that every text fills. With more than one, a long text continues in the next window
        instead of being cut. Each has a begin and an end, and a short text leaves the last ones empty.
      window: ids of a window.
      pad: id of the padding; that of the folder if None.
    """

    folder: str
    chunks: int = 1
    window: int = 77
    pad: int | None = None

    def __post_init__(self):
        positive(self, "chunks")
        between(self, "pad", 0, float("inf"))
        expect(self.window > 2, "window", self.window, "3 or more, for begin, end and a token", "use 77")

    @property
    def length(self) -> int:
        """Ids of every text."""
        return self.chunks * self.window

    @property
    def padding(self) -> int:
        """The id of the padding: `pad`, or else that of the folder."""
        return clip_vocabulary(self.folder).pad if self.pad is None else self.pad

    def encode(self, text: object, name: str = "text") -> Int32[np.ndarray, "length"]:
        """The ids of a str, or of UTF-8 as bytes. `name` is for errors.

        Raises:
          UserError: another type, or characters without an encoding; or there is no tokenizer in the folder.
        """
        known, step = clip_vocabulary(self.folder), self.window - 2
        tokens = _tokens(known, text, name, step * self.chunks, "chunks")
        ids = np.full((self.chunks, self.window), self.padding, np.int32)
        for i, row in enumerate(ids):
            kept = tokens[i * step : (i + 1) * step]
            row[: len(kept) + 2] = [known.begin, *kept, known.end]
        return ids.reshape(-1)

    def measure(self, text: object, name: str = "text") -> TextLength:
        """How much of a text fits. A window has two ids that are no tokens."""
        return _measure(
            clip_vocabulary(self.folder), text, name, (self.window - 2) * self.chunks, self.length
        )

    def decode(self, ids: Int[np.ndarray, "ids"]) -> str:
        """The text between begins and ends, in lower case and with a space after each word."""
        known = clip_vocabulary(self.folder)
        kept = []
        for row in np.asarray(ids).reshape(-1, self.window).tolist():
            kept += row[1 : row.index(known.end) if known.end in row else None]
        return known.tokenizer.decode(kept, skip_special_tokens=False).replace("</w>", " ").strip()

    def check(self, ids: np.ndarray, name: str = "text") -> None:
        """Raise `UserError` unless these are rows of ids [n, length], whose windows have a begin and an end."""
        known = clip_vocabulary(self.folder)
        _check_rows(ids, self.length, known, name)
        windows = ids.reshape(len(ids), self.chunks, self.window)
        valid = (windows[..., 0] == known.begin) & (windows == known.end).any(-1)
        _check_all(valid.all(-1), ids, f"windows of {self.window} ids with a begin and an end", name)


@dataclasses.dataclass(frozen=True)
class T5Tokenizer(_Published):
    """T5's tokenizer: unigrams (Kudo 2018; Raffel et al. 2020), from a model's own folder.

    A text becomes ``tokens, end, padding``. A text that is too long loses its last tokens, and a warning shows them.

    Attributes:
      folder: the model's ``tokenizer`` folder, with ``tokenizer.json``.
      length: ids of every text, the end included.
    """

    folder: str
    length: int = 77

    def __post_init__(self):
        expect(self.length > 1, "length", self.length, "2 or more, since the end takes one id", "try 77")

    def encode(self, text: object, name: str = "text") -> Int32[np.ndarray, "length"]:
        """The ids of a str, or of UTF-8 as bytes. `name` is for errors.

        Raises:
          UserError: another type, or characters without an encoding; or there is no tokenizer in the folder.
        """
        known = t5_vocabulary(self.folder)
        kept = _tokens(known, text, name, self.length - 1, "length")
        ids = np.full(self.length, known.pad, np.int32)
        ids[: len(kept) + 1] = [*kept, known.end]
        return ids

    def measure(self, text: object, name: str = "text") -> TextLength:
        """How much of a text fits."""
        return _measure(t5_vocabulary(self.folder), text, name, self.length - 1, self.length)

    def decode(self, ids: Int[np.ndarray, "ids"]) -> str:
        """The text before the first end."""
        known, row = t5_vocabulary(self.folder), np.asarray(ids).tolist()
        kept = row[: row.index(known.end) if known.end in row else None]
        return known.tokenizer.decode(kept, skip_special_tokens=False)

    def check(self, ids: np.ndarray, name: str = "text") -> None:
        """Raise `UserError` unless these are rows of ids [n, length] with an end."""
        known = t5_vocabulary(self.folder)
        _check_rows(ids, self.length, known, name)
        _check_all((ids == known.end).any(-1), ids, "ids with an end", name)


def _tokens(known: Vocabulary, text: object, name: str, room: int, option: str) -> list[int]:
    """The ids of a text without begin and end, at most `room`; a cut is logged."""
    written = utf8(text, name).decode()
    found = known.tokenizer.encode(written, add_special_tokens=False)
    if len(found.ids) > room and (room, written) not in _warned and len(_warned) < _MOST_WARNINGS:
        _warned.add((room, written))
        lost = written[found.offsets[room][0] :]
        _log.warning(
            "a text of %d tokens was cut to %d: lost %r; raise the tokenizer's %s=... to keep all",
            len(found.ids), room, lost, option,
        )  # fmt: skip
    return found.ids[:room]


def _measure(known: Vocabulary, text: object, name: str, room: int, length: int) -> TextLength:
    """How much of a text fits, if `room` of the ids are tokens."""
    written = utf8(text, name).decode()
    found = known.tokenizer.encode(written, add_special_tokens=False)
    lost = written[found.offsets[room][0] :] if len(found.ids) > room else ""
    return TextLength(len(found.ids) + length - room, length, lost)


def _check_rows(ids: np.ndarray, length: int, known: Vocabulary, name: str) -> None:
    size = known.tokenizer.get_vocab_size()
    got = f"{ids.dtype}{list(ids.shape)}"
    if not np.issubdtype(ids.dtype, np.integer) or ids.shape[1:] != (length,):
        raise UserError(f"{name}={got}: expected texts or their ids, got {got}. Fix: give strings")
    wrong = ids[(ids < 0) | (ids >= size)]
    if wrong.size:
        raise UserError(
            f"{name}={wrong[0]}: expected ids from 0 to {size - 1}, got {wrong[0]}. Fix: give strings"
        )


def _check_all(valid: np.ndarray, ids: np.ndarray, expected: str, name: str) -> None:
    """Raise `UserError` about the first row that is not valid."""
    bad = np.flatnonzero(~valid)
    if bad.size:
        row = ids[bad[0]].tolist()
        raise UserError(f"{name}[{bad[0]}]={row}: expected {expected}, got others. Fix: give strings")
