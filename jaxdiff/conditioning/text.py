"""Text condition: a tokenizer, and an encoder that is part of the model."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.condition import Condition, Shape, json_or_text
from jaxdiff.conditioning.nulls import Null
from jaxdiff.data.text import ByteTokenizer, Tokenizer
from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import expect, positive
from jaxdiff.models.layers import Dense, LayerNorm
from jaxdiff.typing import Array, Bool, Float


class Text(Condition):
    """Text: a caption's ids through an encoder, as tokens for cross-attention and as a vector.

    Values are ids of the tokenizer, [batch, length], or what the encoder has made of them, `Embeddings`; users give
    strings. The empty text is a text like any other. It is the null only with ``null="empty"``.

    Attributes:
      tokenizer: text to ids; must be the same in `Tokenize` in the data.
      encoder: module from ids to `Embeddings` with tokens, and perhaps a vector, such as
        `jaxdiff.models.text_encoder.ByteTransformer`. It shares the parameter scope of this module.
      vector_width: length of a vector that is pooled from the tokens (`Pool`) and added to the network's vector. None
        for the encoder's own vector, if it has one.
      drop_rate: probability of showing the null in training (Ho & Salimans 2022).
      null: one token instead of the text, and a vector, neither from the encoder; or with "empty" the encoding of the
        empty text, as in Stable Diffusion. See `Null`.
    """

    flag: ClassVar[str | None] = "text"
    precomputed_by: ClassVar[tuple[str, ...]] = ("tokenizer", "encoder")

    tokenizer: Tokenizer
    encoder: nn.Module
    vector_width: int | None = None
    drop_rate: float = 0.1
    null: Null = "learned"

    def __post_init__(self):
        positive(self, "vector_width")
        nulls.check(self.null, self.drop_rate, (*nulls.KINDS, "empty"))
        super().__post_init__()

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
        """The encoder's output for texts."""
        return self.encoder(values)

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
        if self.null == "empty":
            ids = jnp.where(drop[:, None], self._empty(ids.dtype), ids)
        return self.encoder(ids)

    def _with_empty(self, encoded: Embeddings, drop: Bool[Array, "batch"]) -> Embeddings:
        """`_encode` of encodings that are given: only the empty text is still encoded, once for a batch."""
        if self.null != "empty":
            return jax.tree.map(_float32, encoded)

        def replace(null: Array, values: Array) -> Array:
            return jnp.where(drop.reshape(-1, *(1,) * (values.ndim - 1)), null, values.astype(null.dtype))

        return jax.tree.map(replace, self.encoder(self._empty(jnp.int32)), encoded)

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
    def read(self, value: object, name: str = "text") -> np.ndarray:
        """Ids of one text or of several: str, UTF-8 bytes, or lists or arrays of these. Ids stay as they are."""
        if isinstance(value, np.ndarray) and value.dtype.kind in "USO":
            value = value.tolist()
        if isinstance(value, str | bytes):
            return self.tokenizer.encode(value, name)
        # Not through an array of strings, which would lose NULs at their ends.
        if isinstance(value, list | tuple) and any(isinstance(text, str | bytes) for text in value):
            return self.tokenizer.encode_batch(value, name)
        return np.asarray(value)

    @nn.nowrap
    def check(self, values: object, name: str = "text") -> None:
        """Raise `UserError` unless these are rows of ids as the tokenizer returns them."""
        self.tokenizer.check(np.asarray(values), name)

    @nn.nowrap
    def parse(self, text: str, name: str) -> list[Any]:
        """A JSON string, or the word itself."""
        value = json_or_text(text, name)
        return [value if isinstance(value, str) else text]

    @nn.nowrap
    def describe(self, values: Any) -> list[str] | None:
        """The texts."""
        ids = np.asarray(values)
        if ids.ndim == 2 and ids.dtype.kind in "iu":
            return [self.tokenizer.decode(row) for row in ids]
        return super().describe(values)


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
