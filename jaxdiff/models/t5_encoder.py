"""T5's encoder: a transformer with relative positions over the ids of a text (Raffel et al. 2020).

Imagen's followers read its states as tokens (Saharia et al. 2022). `jaxdiff.interop.text_encoders` fills it with
published weights.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import between, expect, one_of, positive
from jaxdiff.models.layers import Dense, FromHeads, RmsNorm, ToHeads, check_dtype, embedding_init, look_up
from jaxdiff.typing import Array, Bool, Float

ACTIVATIONS = {
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}
"""Activations of the MLPs: of version 1.1 (GELU by tanh), and of version 1.0."""


class T5Encoder(nn.Module):
    """T5's encoder: pre-norm blocks without biases, whose attention adds a learned number for each distance.

    The numbers are shared by all blocks. Logits are not divided by the root of the head size, since T5's
    initialisation contains that factor. MLPs are those of version 1.1 by default, ``contract(gelu(gate) expand)``
    (GEGLU, Shazeer 2020).

    T5's published weights overflow in float16. Use float32 or bfloat16.

    Attributes:
      width: channels of the encoder and of its tokens.
      layers: number of blocks.
      heads: number of attention heads.
      head_dim: channels of an attention head; ``heads head_dim`` can differ from `width`.
      hidden: hidden width of the MLPs.
      activation: of the MLPs, a key of `ACTIVATIONS`.
      gated: whether MLPs have a gate (version 1.1).
      vocabulary: number of ids.
      buckets: number of classes of distances, see `relative_buckets`.
      max_distance: distance from which all are one class.
      pad: id of padding.
      masked: whether padding is hidden from attention and from the network. Some pipelines let both see it.
      eps: of the norms.
      dtype: of attention and MLPs. Their sum, norms and parameters are float32.
    """

    width: int
    layers: int
    heads: int
    head_dim: int = 64
    hidden: int = 2048
    activation: str = "gelu_new"
    gated: bool = True
    vocabulary: int = 32128
    buckets: int = 32
    max_distance: int = 128
    pad: int = 0
    masked: bool = True
    eps: float = 1e-6
    dtype: str = "float32"

    def __post_init__(self):
        positive(self, "width", "layers", "heads", "head_dim", "hidden", "vocabulary", "buckets", "eps")
        between(self, "buckets", 4, 1 << 20)
        one_of(self, "activation", ACTIVATIONS)
        least = self.buckets // 4
        expect(
            self.max_distance > least,
            "max_distance",
            self.max_distance,
            f"more than {least}, a quarter of buckets={self.buckets}",
            "try 128",
        )
        check_dtype(self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, ids: Int[Array, "batch length"]) -> Embeddings:
        """Tokens [batch, length, width]: the states of texts, with a mask that is False at the padding."""
        length = ids.shape[1]
        mask = ids != self.pad if self.masked else jnp.ones(ids.shape, bool)
        x = look_up(self.param("token_embedding", embedding_init(), (self.vocabulary, self.width)), ids)
        biases = self.param("distance_embedding", embedding_init(), (self.buckets, self.heads))
        distances = relative_buckets(length, self.buckets, self.max_distance)
        bias = jnp.moveaxis(biases[distances], -1, 0)[None]  # [1, heads, length, length]
        for i in range(self.layers):
            block = T5Block(
                self.heads, self.head_dim, self.hidden, self.activation, self.gated, self.eps, self.dtype,
                name=f"block_{i}",
            )  # fmt: skip
            x = block(x, bias, mask)
        return Embeddings(tokens=Tokens(RmsNorm(self.eps, name="norm")(x), mask))


class T5Block(nn.Module):
    """Pre-norm transformer block of T5: self-attention with a bias on the logits, then an MLP.

    Attributes:
      heads, head_dim: number of attention heads, and channels of each.
      hidden: hidden width of the MLP.
      activation: of the MLP, a key of `ACTIVATIONS`.
      gated: ``contract(activation(gate) expand)`` instead of ``contract(activation(expand))``.
    """

    heads: int
    head_dim: int
    hidden: int
    activation: str = "gelu_new"
    gated: bool = True
    eps: float = 1e-6
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length channels"],
        bias: Float[Array, "1 heads length length"],
        mask: Bool[Array, "batch length"],
    ) -> Float[Array, "batch length channels"]:
        options = {"bias": False, "dtype": self.dtype}
        h = RmsNorm(self.eps, name="norm_0")(x)
        h = ToHeads(3, self.heads, self.head_dim, name="query_key_value", **options)(h)
        h = jax.nn.dot_product_attention(
            *h, bias=bias, mask=mask[:, None, None], scale=1.0, implementation="xla"
        )
        x = x + FromHeads(x.shape[-1], zero=False, name="attention_out", **options)(h)
        h = RmsNorm(self.eps, name="norm_1")(x)
        act, inner = ACTIVATIONS[self.activation], Dense(self.hidden, name="expand", **options)(h)
        gate = Dense(self.hidden, name="gate", **options)(h) if self.gated else inner
        inner = act(gate) * inner if self.gated else act(inner)
        return x + Dense(x.shape[-1], name="contract", **options)(inner)


def relative_buckets(
    length: int, buckets: int = 32, max_distance: int = 128
) -> Int[np.ndarray, "length length"]:
    """The class of the distance from each query (row) to each key (column), from 0 to ``buckets - 1``.

    Keys before and after the query have half of the classes each (Raffel et al. 2020, section 2.1). Half of those are
    single distances. The others grow logarithmically up to `max_distance`, beyond which all distances are one class.
    """
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    side = buckets // 2
    single = side // 2
    distance = np.abs(offset)
    # In float32, as T5 computes it: at powers of two, rounding decides on the class.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / single)
    growth = ratio / np.float32(np.log(max_distance / single)) * (side - single)
    far = np.minimum(single + growth.astype(np.int64), side - 1)
    return np.where(offset > 0, side, 0) + np.where(distance < single, distance, far)
