"""One text for several encoders: the ids of several tokenizers, one after another."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from jaxdiff.data.text import Measuring, TextLength, Tokenizer
from jaxdiff.errors import UserError, expect


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
        """The ids of a str, or of UTF-8 as bytes. `name` is for errors."""
        return np.concatenate([tokenizer.encode(text, name) for tokenizer in self.tokenizers])

    def encode_each(self, texts: Sequence[object], name: str = "text") -> Int32[np.ndarray, "length"]:
        """The ids of one sample whose encoders read different texts, as by `prompt_2` of diffusers.

        Args:
          texts: one for each tokenizer.
        """
        count = len(self.tokenizers)
        fits = not isinstance(texts, str | bytes) and len(texts) == count
        expect(fits, name, texts, f"{count} texts, one for each tokenizer", "give a list of these")
        pairs = zip(self.tokenizers, texts, strict=True)
        return np.concatenate(
            [tokenizer.encode(text, f"{name}[{i}]") for i, (tokenizer, text) in enumerate(pairs)]
        )

    def encode_batch(self, texts: Sequence[object], name: str = "text") -> Int32[np.ndarray, "batch length"]:
        """The ids of several texts; an error names the text by its index."""
        parts = [tokenizer.encode_batch(texts, name) for tokenizer in self.tokenizers]
        return np.concatenate(parts, axis=1)

    def measure(self, text: object, name: str = "text") -> TextLength:
        """How much of a text fits into the ids of the tokenizer that loses most."""
        every = [each.measure(text, name) for each in self.tokenizers if isinstance(each, Measuring)]
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

    def _split(self, ids: np.ndarray) -> list[np.ndarray]:
        return np.split(ids, len(self.tokenizers), axis=-1)
