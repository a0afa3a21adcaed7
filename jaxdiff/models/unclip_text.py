"""CLIP's texts for unCLIP: tokens of a prior, and tokens and vector of a decoder (Ramesh et al. 2022, "DALL-E 2").

Both are encoders of a `jaxdiff.conditioning.text.Text`. Positions after a text's end are masked.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Int

from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import expect, positive
from jaxdiff.models.clip_text import ClipTextEncoder, end_positions
from jaxdiff.models.layers import Dense, LayerNorm
from jaxdiff.typing import Array, Bool, Float


class PriorText(nn.Module):
    """A text as the prior reads it: CLIP's states, each projected, and then CLIP's text embedding, projected.

    Attributes:
      clip: CLIP's text encoder, from ids to `Embeddings` with tokens and a vector: a `ClipTextEncoder` that is
        `pooled`, with or without a projection, or `jaxdiff.models.dual_encoder.PooledEncoder`.
      width: channels of the tokens, those of the `PriorTransformer`.
    """

    clip: nn.Module
    width: int

    def __post_init__(self):
        positive(self, "width")
        _check_pooled(self.clip)
        super().__post_init__()

    @nn.compact
    def __call__(self, ids: Int[Array, "batch ids"]) -> Embeddings:
        """Tokens [batch, ids + 1, width]; the last is the text embedding."""
        states, pooled, shown = _encoded(self.clip, ids)
        states = Dense(self.width, name="states")(states)
        embedding = Dense(self.width, name="embedding")(pooled)
        features = jnp.concatenate([states, embedding[:, None]], axis=1)
        mask = jnp.pad(shown, ((0, 0), (0, 1)), constant_values=True)
        return Embeddings(tokens=Tokens(features, mask))


class DecoderText(nn.Module):
    """A text as unCLIP's decoder reads it: CLIP's states, projected and normalised, as tokens; and CLIP's text
    embedding, projected, as a vector.

    Attributes:
      clip: CLIP's text encoder, as that of `PriorText`.
      width: channels of the tokens.
      vector_width: length of the vector, that of the network's.
    """

    clip: nn.Module
    width: int
    vector_width: int

    def __post_init__(self):
        positive(self, "width", "vector_width")
        _check_pooled(self.clip)
        super().__post_init__()

    @nn.compact
    def __call__(self, ids: Int[Array, "batch ids"]) -> Embeddings:
        states, pooled, shown = _encoded(self.clip, ids)
        features = LayerNorm(name="norm")(Dense(self.width, name="states")(states))
        vector = Dense(self.vector_width, name="embedding")(pooled)
        return Embeddings(vector=vector, tokens=Tokens(features, shown))


def within(ids: Int[Array, "batch ids"], end: int) -> Bool[Array, "batch ids"]:
    """Whether each position is in its text, up to the first end and with it."""
    return jnp.arange(ids.shape[1])[None] <= end_positions(ids, end)[:, None]


def _encoded(
    encoder: nn.Module, ids: Int[Array, "batch ids"]
) -> tuple[Float[Array, "batch tokens channels"], Float[Array, "batch dim"], Bool[Array, "batch tokens"]]:
    """The states of a text, its embedding, and which of the states exist."""
    found = encoder(ids)
    tokens, vector = found.tokens, found.vector
    assert tokens is not None
    assert vector is not None  # it is pooled
    end = encoder.end if isinstance(encoder, ClipTextEncoder) else None
    return tokens.features, vector, tokens.mask if end is None else within(ids, end)


def _check_pooled(encoder: nn.Module) -> None:
    pooled = encoder.pooled if isinstance(encoder, ClipTextEncoder) else True
    fix = "set pooled=True"
    expect(pooled, "encoder.pooled", pooled, "True, since the embedding of a text is read", fix)
