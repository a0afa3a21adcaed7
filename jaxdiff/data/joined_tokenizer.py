"""One text for several encoders: the ids of several tokenizers, one after another."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from jaxdiff.data.text import Measuring, TextLength, Tokenizer
from jaxdiff.errors import UserError, expect


@dataclasses.dataclass(frozen=True)
class Texts:
    """A text for each encoder of a model, for one sample: `prompt` and `prompt_2` of SDXL's pipelines in diffusers.

    Attributes:
      each: in the order of the encoders.
    """

    each: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class JoinedTokenizer:
    """Joined tokenizers: the ids of the first, then those of the second, for `JoinedEncoder`. SDXL's two differ in
    their padding (Podell et al. 2023).

    Attributes:
      tokenizers: at least two, each with as many ids.
    """

    tokenizers: tuple[Tokenizer, ...]

    def __post_init__(self):
        lengths = [tokenizer.length for tokenizer in self.tokenizers]
        same = len(lengths) > 1 and len(set(lengths)) == 1
        expect(same, "tokenizers", lengths, "two or more tokenizers of one length", "give such", str(lengths))

    @property
    def length(self) -> int:
        """Ids of every text, of all tokenizers together."""
        return sum(tokenizer.length for tokenizer in self.tokenizers)

    def encode(self, text: object, name: str = "text") -> Int32[np.ndarray, "length"]:
        """The ids of a str, of UTF-8 as bytes, or of `Texts`. `name` is for errors."""
        return np.concatenate([tokenizer.encode(*own) for tokenizer, own in self._pairs(text, name)])

    def encode_batch(self, texts: Sequence[object], name: str = "text") -> Int32[np.ndarray, "batch length"]:
        """The ids of several texts; an error names the text by its index."""
        rows = [self.encode(text, f"{name}[{i}]") for i, text in enumerate(texts)]
        return np.stack(rows) if rows else np.empty((0, self.length), np.int32)

    def measure(self, text: object, name: str = "text") -> TextLength:
        """How much of a text fits into the ids of the tokenizer that loses most."""
        pairs = self._pairs(text, name)
        every = [each.measure(*own) for each, own in pairs if isinstance(each, Measuring)]
        return max(every, key=lambda found: (len(found.lost), found.needed))

    def decode(self, ids: Int[np.ndarray, "ids"]) -> str:
        """The text of ids, as the first tokenizer reads it."""
        return self.tokenizers[0].decode(self._split(ids)[0])

    def check(self, ids: np.ndarray, name: str = "text") -> None:
        """Raise `UserError` unless these are rows of ids [n, length] of the tokenizers, one after another."""
        if ids.shape[1:] != (self.length,):
            got = f"{ids.dtype}{list(ids.shape)}"
            raise UserError(f"{name}={got}: expected texts or their ids, got {got}. Fix: give strings")
        for tokenizer, part in zip(self.tokenizers, self._split(ids), strict=True):
            tokenizer.check(part, name)

    def _pairs(self, text: object, name: str) -> list[tuple[Tokenizer, tuple[object, str]]]:
        """Each tokenizer with the text that it reads, and the text's name."""
        if not isinstance(text, Texts):
            return [(tokenizer, (text, name)) for tokenizer in self.tokenizers]
        count, texts = len(self.tokenizers), list(text.each)
        expected, fix = f"{count} texts, one for each encoder", "give as many"
        expect(len(texts) == count, name, texts, expected, fix, str(len(texts)))
        named = [(own, f"{name}[{i}]") for i, own in enumerate(texts)]
        return list(zip(self.tokenizers, named, strict=True))

    def _split(self, ids: np.ndarray) -> list[np.ndarray]:
        return np.split(ids, len(self.tokenizers), axis=-1)
