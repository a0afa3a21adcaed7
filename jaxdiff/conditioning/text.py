"""Text condition: a tokenizer, and an encoder that is part of the model."""

import json
import logging
import pathlib
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.condition import Condition, Shape, json_or_text
from jaxdiff.conditioning.nulls import Null
from jaxdiff.data.joined_tokenizer import JoinedTokenizer, Texts
from jaxdiff.data.text import ByteTokenizer, Tokenizer
from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import expect, positive
from jaxdiff.models.joined_encoder import most_skipped
from jaxdiff.models.layers import Dense, LayerNorm
from jaxdiff.typing import Array, Bool, Float

_log = logging.getLogger(__name__)


class Text(Condition):
    """Text: a caption's ids through an encoder, as tokens for cross-attention and as a vector.

    Values are ids of the tokenizer, [batch, length], or what the encoder has made of them, `Embeddings`; users give
    strings, or `Texts` where a model has several encoders. A model with one reads the first of them. The empty text is
    a text like any other. It is the null only with ``null="empty"``.

    Attributes:
      tokenizer: text to ids; must be the same in `Tokenize` in the data.
      encoder: module from ids to `Embeddings` with tokens, and perhaps a vector, such as
        `jaxdiff.models.text_encoder.ByteTransformer`. It shares the parameter scope of this module.
      vector_width: length of a vector that is pooled from the tokens (`Pool`) and added to the network's vector. None
        for the encoder's own vector, if it has one.
      drop_rate: probability of showing the null in training (Ho & Salimans 2022).
      null: one token instead of the text, and a vector, neither from the encoder; or with "empty" the encoding of the
        empty text, as in Stable Diffusion. See `Null`.
      clip_skip: number of blocks of the encoder that the tokens of a text leave out, "clip skip". It does not act on
        the null and on negative texts, as `clip_skip` of diffusers; `layer` of the encoder acts on all texts.
    """

    flag: ClassVar[str | None] = "text"

    tokenizer: Tokenizer
    encoder: nn.Module
    vector_width: int | None = None
    drop_rate: float = 0.1
    null: Null = "learned"
    clip_skip: int = 0

    def __post_init__(self):
        positive(self, "vector_width")
        nulls.check(self.null, self.drop_rate, (*nulls.KINDS, "empty"))
        most, fix = most_skipped(self.encoder), "give fewer; encoders other than CLIP's leave out none"
        expect(self.clip_skip in range(most + 1), "clip_skip", self.clip_skip, f"0 to {most} blocks", fix)
        super().__post_init__()

    @property
    def precomputed_by(self) -> tuple[str, ...]:
        """See `Condition`. Caches of texts of which nothing is left out need not know of `clip_skip`."""
        return ("tokenizer", "encoder", *(["clip_skip"] if self.clip_skip else []))

    def setup(self):
        nn.share_scope(self, self.encoder)

    @nn.compact
    def __call__(
        self, values: Int[Array, "batch length"] | Embeddings, drop: Bool[Array, "batch"]
    ) -> Embeddings:
        given = isinstance(values, Embeddings)
        encoded: Any = self._with_empty(values, drop) if given else self._encode(values, drop)
        tokens, vector = encoded.tokens, encoded.vector
        if self.vector_width is not None:
            vector = Pool(self.vector_width, self.null, name="pool")(tokens, drop)
        elif vector is not None:
            vector = nulls.replace_dropped(
                self, self.null, vector, drop, nn.initializers.zeros, "null_vector"
            )
        return Embeddings(vector=vector, tokens=self._with_null(tokens, drop))

    def precompute(self, values: Int[Array, "batch length"]) -> Embeddings:
        """The encoder's output for texts, none of which is the null or negative."""
        return self.encoder(values, self.clip_skip) if self.clip_skip else self.encoder(values)

    def _encode(self, ids: Int[Array, "batch length"], drop: Bool[Array, "batch"]) -> Embeddings:
        """The encodings of texts; of the empty text in the examples that are dropped, if it is the null."""
        size = ids.shape[1]
        expect(
            size == self.tokenizer.length,
            "tokenizer.length",
            self.tokenizer.length,
            f"the {size} ids of this batch's texts",
            "give Tokenize and Text the same tokenizer",
        )
        if self.null != "empty":
            return self.precompute(ids)
        ids = jnp.where(drop[:, None], self._empty(ids.dtype), ids)
        whole = self.encoder(ids)
        return _chosen(drop, whole, self.precompute(ids)) if self.clip_skip else whole

    def _with_empty(self, encoded: Embeddings, drop: Bool[Array, "batch"]) -> Embeddings:
        """`_encode` of encodings that are given: only the empty text is still encoded, once for a batch."""
        if self.null != "empty":
            return jax.tree.map(_float32, encoded)
        return _chosen(drop, self.encoder(self._empty(jnp.int32)), encoded)

    @nn.nowrap
    def _empty(self, dtype: Any) -> Int[Array, "1 length"]:
        """The ids of the empty text."""
        return jnp.asarray(self.tokenizer.encode(""), dtype)[None]

    def _with_null(self, tokens: Tokens, drop: Bool[Array, "batch"]) -> Tokens:
        """The tokens, with a single null token in the examples that are dropped."""
        features = nulls.replace_dropped(self, self.null, tokens.features, drop, nn.initializers.normal(1.0))
        if self.null in ("none", "empty"):
            return Tokens(features, tokens.mask)
        # All positions of a null are equal, so one token is enough.
        first = jnp.arange(tokens.mask.shape[1]) == 0
        return Tokens(features, jnp.where(drop[:, None], first[None], tokens.mask))

    @nn.nowrap
    def example(self, batch: int, data_shape: Shape | None = None) -> Int[Array, "batch length"]:
        return jnp.asarray(self.tokenizer.encode_batch([""] * batch))

    @nn.nowrap
    def for_shapes(self) -> "Text":
        """This condition with a tokenizer of the same length that has no files."""
        return self.clone(tokenizer=ByteTokenizer(self.tokenizer.length))

    @nn.nowrap
    def for_negative(self) -> "Text":
        """This condition without clip skip."""
        return self.clone(clip_skip=0) if self.clip_skip else self

    @nn.nowrap
    def read(self, value: object, name: str = "text") -> np.ndarray:
        """Ids of one text or of several: str, UTF-8 bytes, `Texts`, or lists or arrays of these. Ids stay."""
        if isinstance(value, np.ndarray) and value.dtype.kind in "USO":
            value = value.tolist()
        if isinstance(value, str | bytes | Texts):
            return self.tokenizer.encode(self._fitting(value, name), name)
        # Not through an array of strings, which would lose NULs at their ends.
        if isinstance(value, list | tuple) and any(isinstance(text, str | bytes | Texts) for text in value):
            return self.tokenizer.encode_batch([self._fitting(text, name) for text in value], name)
        return np.asarray(value)

    @nn.nowrap
    def _fitting(self, text: object, name: str) -> object:
        """A text as the tokenizer reads it: of several, a single encoder reads the first, as in diffusers."""
        if not isinstance(text, Texts) or isinstance(self.tokenizer, JoinedTokenizer):
            return text
        expect(bool(text.each), name, text, "a text for each encoder", "give one")
        first, count = text.each[0], len(text.each)
        _log.warning("%s: of %d texts, the one text encoder of the model reads %r", name, count, first)
        return first

    @nn.nowrap
    def check(self, values: object, name: str = "text") -> None:
        """Raise `UserError` unless these are rows of ids as the tokenizer returns them."""
        self.tokenizer.check(np.asarray(values), name)

    @nn.nowrap
    def parse(self, text: str, name: str) -> list[Any]:
        """A JSON string, a JSON list of a string for each encoder, or the word itself."""
        value = json_or_text(text, name)
        if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
            return [self._texts(value, name)]
        return [value if isinstance(value, str) else text]

    @nn.nowrap
    def from_json(self, value: Any, name: str, folder: pathlib.Path) -> Any:
        """A string, or a list of one for each encoder."""
        return self._texts(value, name) if isinstance(value, list) else value

    @nn.nowrap
    def _texts(self, value: list[Any], name: str) -> Texts:
        """A text for each encoder."""
        several = isinstance(self.tokenizer, JoinedTokenizer)
        fix = "give a string; a list has a text for each encoder, as in SDXL"
        expect(several, name, value, "one text for the one text encoder of the model", fix, "a list")
        return Texts(tuple(value))

    @nn.nowrap
    def to_arrays(self, value: Any, name: str, n: int) -> dict[str, np.ndarray]:
        """Strings; for `Texts` as `parse` reads them."""
        items = [_word(each) for each in value] if isinstance(value, list) else _word(value)
        return {name: np.asarray(items)}

    @nn.nowrap
    def describe(self, values: Any) -> list[str] | None:
        """The texts."""
        ids = np.asarray(values)
        if ids.ndim == 2 and ids.dtype.kind in "iu":
            return [self.tokenizer.decode(row) for row in ids]
        return super().describe(values)


def _word(value: Any) -> Any:
    """`Texts` as a JSON list, and any other value as it is."""
    return json.dumps(value.each, ensure_ascii=False) if isinstance(value, Texts) else value


def _chosen(drop: Bool[Array, "batch"], dropped: Embeddings, shown: Embeddings) -> Embeddings:
    """For each example one of two embeddings, in the types of `dropped`."""

    def choose(one: Array, other: Array) -> Array:
        return jnp.where(drop.reshape(-1, *(1,) * (other.ndim - 1)), one, other.astype(one.dtype))

    return jax.tree.map(choose, dropped, shown)


def _float32(values: Array) -> Array:
    """The array, in float32 if it holds floats; they may be stored in less."""
    return values.astype(jnp.float32) if jnp.issubdtype(values.dtype, jnp.floating) else values


class Pool(nn.Module):
    """Pooled vector: ``dense_1(silu(dense_0(norm(mean))))`` of the tokens (Saharia et al. 2022, "Imagen", section
    2.4.1). A learned null starts at zero.
    """

    width: int
    null: Null = "learned"

    @nn.compact
    def __call__(self, tokens: Tokens, drop: Bool[Array, "batch"]) -> Float[Array, "batch width"]:
        shown = tokens.mask[..., None].astype(tokens.features.dtype)
        mean = jnp.sum(shown * tokens.features, axis=1) / jnp.maximum(jnp.sum(shown, axis=1), 1)
        normed = LayerNorm(name="norm")(mean[:, None])[:, 0]
        hidden = jax.nn.silu(Dense(self.width, name="dense_0")(normed))
        vectors = Dense(self.width, name="dense_1")(hidden)
        return nulls.replace_dropped(self, self.null, vectors, drop, nn.initializers.zeros)
