"""Text encoders: transformers over the ids of a text, trained with the rest of the model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Int

from jaxdiff.data.text import IDS, PAD, SPACE
from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import expect, positive
from jaxdiff.models.attention import attend
from jaxdiff.models.layers import Dense, FromHeads, LayerNorm, ToHeads, check_dtype, embedding_init, look_up
from jaxdiff.typing import Array, Bool, Float


class ByteTransformer(nn.Module):
    """Byte transformer: a pre-norm encoder of UTF-8 bytes (Nichol et al. 2021, "GLIDE"; Xue et al. 2022, "ByT5").

    Bytes and their positions become vectors, which self-attention and MLPs turn into tokens. Padding is masked: no
    token depends on it. A `ByteTokenizer` gives the ids, [batch, length].

    Attributes:
      width: channels of the encoder and of its tokens.
      layers: number of blocks.
      window: size of a convolution over bytes before the encoder, which gives letters the context of their word, as
        in CANINE (Clark et al. 2022). An odd number; 1 for none.
      words: most words of a text. The bytes of a word become one token, and the last word takes the rest: the encoder
        and the network then read a tenth of the tokens ("SpaceByte", Slagle 2024). None for a token per byte.
      phrase: size of a convolution over words, which starts at zero. The relation of a word to its neighbours
        ("above" before it, or after it) need then not be learned from positions. 1 for none.
      head_dim: channels of an attention head.
      expansion: hidden width of the MLPs, as a multiple of `width`.
      dtype: of attention and MLPs. Their sum, norms and parameters are float32.
    """

    width: int
    layers: int = 4
    window: int = 1
    words: int | None = None
    phrase: int = 1
    head_dim: int = 64
    expansion: int = 4
    dtype: str = "float32"

    def __post_init__(self):
        positive(self, "width", "layers", "words", "head_dim", "expansion")
        expect(
            self.width % self.head_dim == 0,
            "width",
            self.width,
            f"a multiple of head_dim={self.head_dim}",
            "change one of them",
        )
        for name in ("window", "phrase"):
            size = getattr(self, name)
            expect(size > 0 and size % 2 == 1, name, size, "an odd number > 0", "try 1 or 5")
        expect(
            self.phrase == 1 or self.words is not None,
            "phrase",
            self.phrase,
            "1 where tokens are bytes, not words",
            "set words, or use window for bytes",
        )
        check_dtype(self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, ids: Int[Array, "batch length"]) -> Embeddings:
        """The tokens of texts."""
        table = self.param("bytes", embedding_init(), (IDS, self.width))
        positions = self.param("places", embedding_init(), (self.words or ids.shape[1], self.width))
        x = look_up(table, ids)
        mask = ids != PAD
        if self.window > 1:
            x = x + Window(self.window, dtype=self.dtype, name="window")(jnp.where(mask[..., None], x, 0))
        if self.words is not None:
            x, mask = pool_words(x, ids, self.words)
        if self.phrase > 1:
            # Beyond the last word x is 0 already.
            x = x + Window(self.phrase, zero=True, dtype=self.dtype, name="phrase")(x)
        x = x + positions[None]
        for i in range(self.layers):
            x = EncoderBlock(self.head_dim, self.expansion, self.dtype, name=f"block_{i}")(x, mask)
        return Embeddings(tokens=Tokens(LayerNorm(name="norm")(x), mask))


def pool_words(
    x: Float[Array, "batch length channels"], ids: Int[Array, "batch length"], words: int
) -> tuple[Float[Array, "batch words channels"], Bool[Array, "batch words"]]:
    """For each word, the sum of its bytes' vectors over the root of their number; and which words exist.

    A space belongs to the word that it begins.
    """
    word = jnp.minimum(jnp.cumsum(ids == SPACE, axis=1), words - 1)
    member = (word[:, None] == jnp.arange(words)[None, :, None]) & (ids != PAD)[:, None]
    size = jnp.sum(member, axis=2, dtype=x.dtype)
    return jnp.matmul(member.astype(x.dtype), x) / jnp.sqrt(jnp.maximum(size, 1))[..., None], size > 0


class Window(nn.Module):
    """A convolution of width `size` over a sequence, then GELU and a dense layer; padded with zeros at both ends."""

    size: int
    zero: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "batch length channels"]) -> Float[Array, "batch length channels"]:
        length, channels = x.shape[1:]
        padded = jnp.pad(x, ((0, 0), (self.size // 2, self.size // 2), (0, 0)))
        neighbours = jnp.concatenate([padded[:, i : i + length] for i in range(self.size)], axis=-1)
        hidden = jax.nn.gelu(Dense(channels, dtype=self.dtype, name="dense_0")(neighbours), approximate=False)
        return Dense(channels, zero=self.zero, dtype=self.dtype, name="dense_1")(hidden)


class EncoderBlock(nn.Module):
    """Pre-norm transformer block (Xiong et al. 2020): self-attention, then an MLP with GELU; starts as identity."""

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
