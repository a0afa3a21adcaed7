"""Text as a condition, read by an encoder that is trained with the rest of the model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.nulls import Null
from jaxdiff.data.text import END, IDS, PAD, SPACE, ByteTokenizer
from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import UserError, require
from jaxdiff.models.attention import attend
from jaxdiff.models.layers import Dense, FromHeads, LayerNorm, ToHeads, check_dtype, embedding_init
from jaxdiff.typing import Array, Bool, Float


class Text(nn.Module):
    """A caption, byte by byte, through a transformer that is learned with the network (Nichol et al. 2021, "GLIDE").

    Bytes and their places become vectors, which a pre-norm encoder makes into tokens for cross-attention. With
    `vector_width`, their mean through two dense layers joins the vector that drives the norms, too. Padding is no
    token: nothing depends on it. An empty caption still has its end to attend to, and is not the null.

    Values are ids of a `ByteTokenizer`, [batch, length]; users give strings.

    Attributes:
      width: of the encoder, and of the tokens that the network attends to.
      length: ids of a text, that of `Tokenize` in the data; a byte each, and the end.
      layers: blocks of the encoder.
      window: so many bytes about each are joined to it by a convolution, before the encoder, which then starts from
        letters in their words, as that of CANINE does (Clark et al. 2022). An odd number; 1 for none.
      words: the bytes of a word become one token, for at most so many words, the last of which takes the rest: the
        encoder and the network then read a tenth of the tokens ("SpaceByte", Slagle 2024). None for a token each.
      phrase: so many words about each are joined to it in the same way; starts as nothing. What a word is to its
        neighbours ("above" before it, or behind it) need then not be found out from their places. 1 for none.
      head_dim: channels of an attention head.
      expansion: hidden width of the MLPs, as a multiple of `width`.
      vector_width: length of the network's vector; None to leave it alone.
      drop_rate: how often training shows the null (Ho & Salimans 2022).
      null: one token in place of the text, and a vector, neither made by the encoder, see `Null`.
      dtype: in which attention and MLPs compute; their sum, norms and parameters are float32.
    """

    width: int
    length: int
    layers: int = 4
    window: int = 1
    words: int | None = None
    phrase: int = 1
    head_dim: int = 64
    expansion: int = 4
    vector_width: int | None = None
    drop_rate: float = 0.1
    null: Null = "learned"
    dtype: str = "float32"

    def __post_init__(self):
        for name in ("width", "layers", "words", "head_dim", "expansion", "vector_width"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "it must be positive", "give at least 1")
        require(self.width % self.head_dim == 0, "width", self.width,
                f"attention splits it into heads of head_dim={self.head_dim}", "use a multiple")  # fmt: skip
        for name in ("window", "phrase"):
            size = getattr(self, name)
            require(size > 0 and size % 2 == 1, name, size, "it has no middle", "try 1 or 5")
        require(self.phrase == 1 or self.words is not None, "phrase", self.phrase,
                "a token is a byte, not a word", "set words, or window for bytes")  # fmt: skip
        ByteTokenizer(self.length)  # which knows what lengths there are
        nulls.check(self.null, self.drop_rate)
        check_dtype(self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, ids: Int[Array, "batch length"], drop: Bool[Array, "batch"]) -> Embeddings:
        given = ids.shape[1]
        require(given == self.length, "length", self.length, f"the texts of this batch have {given} ids",
                "give Tokenize and Text the same length")  # fmt: skip
        table = self.param("bytes", embedding_init(), (IDS, self.width))
        places = self.param("places", embedding_init(), (self.words or self.length, self.width))
        # An id out of range becomes NaN, never another byte: -1 would read the last row.
        rows = jnp.where(ids < 0, IDS, ids)
        x = jnp.take(table, rows, axis=0, mode="fill", fill_value=jnp.nan)
        mask = ids != PAD
        if self.window > 1:
            x = x + Window(self.window, dtype=self.dtype, name="window")(jnp.where(mask[..., None], x, 0))
        if self.words is not None:
            x, mask = in_words(x, ids, self.words)
        if self.phrase > 1:
            # Beyond the last word x is 0 already.
            x = x + Window(self.phrase, zero=True, dtype=self.dtype, name="phrase")(x)
        x = x + places[None]
        for i in range(self.layers):
            x = EncoderBlock(self.head_dim, self.expansion, self.dtype, name=f"block_{i}")(x, mask)
        tokens = LayerNorm(name="norm")(x)
        vector = None
        if self.vector_width is not None:
            vector = Pool(self.vector_width, self.null, name="pool")(tokens, mask, drop)
        if self.null != "none":
            # One token is enough where all are the same.
            first = jnp.arange(mask.shape[1]) == 0
            mask = jnp.where(drop[:, None], first[None], mask)
        tokens = nulls.instead(self, tokens, drop, nn.initializers.normal(1.0))
        return Embeddings(vector=vector, tokens=Tokens(tokens, mask))

    @nn.nowrap
    def example(
        self, batch: int, image_shape: tuple[int, int, int] | None = None
    ) -> Int[Array, "batch length"]:
        return jnp.asarray(ByteTokenizer(self.length).encode_batch([""] * batch))

    @nn.nowrap
    def read(self, value: object) -> np.ndarray:
        """Ids of one text or of several: str, UTF-8 bytes, or lists or arrays of these; ids stay as they are."""
        tokenizer = ByteTokenizer(self.length)
        if isinstance(value, np.ndarray) and value.dtype.kind in "USO":
            value = value.tolist()
        if isinstance(value, str | bytes):
            return tokenizer.encode(value)
        # Not through an array of strings, which would lose NULs at their ends.
        if isinstance(value, list | tuple) and any(isinstance(text, str | bytes) for text in value):
            return tokenizer.encode_batch(value)
        return np.asarray(value)

    @nn.nowrap
    def check(self, values: object, name: str = "text") -> None:
        """Raise `UserError` unless these are rows of ids as a `ByteTokenizer` of this length makes them."""
        ids = np.asarray(values)
        fix = f"give strings, or ids [n, {self.length}] that ByteTokenizer({self.length}) has made"
        if not np.issubdtype(ids.dtype, np.integer) or ids.shape[1:] != (self.length,):
            raise UserError(f"{name}={ids.dtype}{list(ids.shape)}: it is no text. Fix: {fix}")
        wrong = ids[(ids < 0) | (ids >= IDS)]
        if wrong.size:
            raise UserError(f"{name}={wrong[0]}: ids are 0 to {IDS - 1}. Fix: {fix}")
        end = np.argmax(ids == END, axis=1)[:, None]  # 0 where there is none
        place = np.arange(self.length)
        whole = (ids == END) == (place == end)
        whole &= (ids == PAD) == (place > end)
        bad = np.flatnonzero(~np.all(whole, axis=1))
        if bad.size:
            why = "a text has one end, and padding behind it only"
            raise UserError(f"{name}[{bad[0]}]={ids[bad[0]].tolist()}: {why}. Fix: {fix}")


def in_words(
    x: Float[Array, "batch length channels"], ids: Int[Array, "batch length"], words: int
) -> tuple[Float[Array, "batch words channels"], Bool[Array, "batch words"]]:
    """The bytes of each word added up, over the root of their number, and which words there are.

    A space belongs to the word that it begins.
    """
    word = jnp.minimum(jnp.cumsum(ids == SPACE, axis=1), words - 1)
    member = (word[:, None] == jnp.arange(words)[None, :, None]) & (ids != PAD)[:, None]
    size = jnp.sum(member, axis=2, dtype=x.dtype)
    return jnp.matmul(member.astype(x.dtype), x) / jnp.sqrt(jnp.maximum(size, 1))[..., None], size > 0


class Window(nn.Module):
    """Two dense layers, with the exact GELU between, of each vector and those about it; zeros beyond both ends."""

    size: int
    zero: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "batch length channels"]) -> Float[Array, "batch length channels"]:
        length, channels = x.shape[1:]
        padded = jnp.pad(x, ((0, 0), (self.size // 2, self.size // 2), (0, 0)))
        near = jnp.concatenate([padded[:, i : i + length] for i in range(self.size)], axis=-1)
        hidden = jax.nn.gelu(Dense(channels, dtype=self.dtype, name="dense_0")(near), approximate=False)
        return Dense(channels, zero=self.zero, dtype=self.dtype, name="dense_1")(hidden)


class EncoderBlock(nn.Module):
    """Self-attention and an MLP with the exact GELU, each added to what it is given, behind a norm; starts as its skip.

    A pre-norm block (Xiong et al. 2020), which has no vector to adapt to.
    """

    head_dim: int
    expansion: int = 4
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length channels"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch length channels"]:
        channels = x.shape[-1]
        heads = channels // self.head_dim
        h = LayerNorm(name="norm_0")(x)
        h = ToHeads(3, heads, self.head_dim, self.dtype, name="query_key_value")(h)
        x = x + FromHeads(channels, self.dtype, name="attention_out")(attend(*h, mask))
        h = LayerNorm(name="norm_1")(x)
        h = Dense(self.expansion * channels, dtype=self.dtype, name="expand")(h)
        h = jax.nn.gelu(h, approximate=False)
        return x + Dense(channels, zero=True, dtype=self.dtype, name="contract")(h)


class Pool(nn.Module):
    """``dense_1(silu(dense_0(norm(mean))))`` of the tokens that are there, as in "Imagen" (Saharia et al. 2022, section
    2.4.1). Its null starts as nothing, zeros.
    """

    width: int
    null: Null = "learned"

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "batch length channels"],
        mask: Bool[Array, "batch length"],
        drop: Bool[Array, "batch"],
    ) -> Float[Array, "batch width"]:
        shown = mask[..., None].astype(tokens.dtype)
        mean = jnp.sum(shown * tokens, axis=1) / jnp.maximum(jnp.sum(shown, axis=1), 1)
        normed = LayerNorm(name="norm")(mean[:, None])[:, 0]
        hidden = jax.nn.silu(Dense(self.width, name="dense_0")(normed))
        vectors = Dense(self.width, name="dense_1")(hidden)
        return nulls.instead(self, vectors, drop, nn.initializers.zeros)
