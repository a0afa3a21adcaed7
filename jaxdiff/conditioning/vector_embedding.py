"""A vector of a frozen encoder as a condition, such as CLIP's embedding of an image (unCLIP)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.condition import Condition, Shape, json_or_text
from jaxdiff.conditioning.nulls import Null
from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import UserError, expect, positive
from jaxdiff.models.layers import Dense
from jaxdiff.typing import Array, Bool, Float


class VectorValues(Condition):
    """The base of conditions whose values are vectors, [batch, size]: their reading and checking.

    Attributes:
      size: length of the vector.
    """

    size: int

    @nn.nowrap
    def example(self, batch: int, data_shape: Shape | None = None) -> Float[Array, "batch size"]:
        return jnp.zeros((batch, self.size))

    @nn.nowrap
    def parse(self, text: str, name: str) -> list[Any]:
        """The vector as a JSON list of numbers."""
        value = json_or_text(text, name)
        if not isinstance(value, list):
            raise UserError(
                f"{name}={text[:60]}: expected a list of {self.size} numbers, got {text[:60]!r}. "
                "Fix: write [0.1, ...]; a photograph needs a model with an image encoder"
            )
        return [np.asarray(value, np.float32)]

    @nn.nowrap
    def check(self, values: object, name: str = "embedding") -> None:
        """Raise `UserError` unless these are finite vectors of the right length."""
        array = np.asarray(values)
        got = f"{array.dtype}{list(array.shape)}"
        if not np.issubdtype(array.dtype, np.floating) or array.shape[1:] != (self.size,):
            raise UserError(
                f"{name}={got}: expected vectors of the encoder, got {got}. Fix: give floats [n, {self.size}]"
            )
        finite = bool(np.all(np.isfinite(array)))
        expect(finite, name, got, "finite numbers", "remove NaN and infinity", "NaN or infinity")


class PlainVector(VectorValues):
    """A vector as it is, for `Conditioner.concatenated`.

    Attributes:
      size: length of the vector.
      drop_rate: probability of showing the null in training.
      null: the vector in place of a dropped one, see `Null`.
    """

    size: int
    drop_rate: float = 0.1
    null: Null = "zero"

    def __post_init__(self):
        positive(self, "size")
        nulls.check(self.null, self.drop_rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, values: Float[Array, "batch size"], drop: Bool[Array, "batch"]) -> Embeddings:
        vector = nulls.replace_dropped(self, self.null, values, drop, nn.initializers.zeros)
        return Embeddings(vector=vector)


class EmbeddedVector(VectorValues):
    """Image embedding of unCLIP's decoder: a vector that is projected to the network's vector, and to extra tokens
    (Ramesh et al. 2022, "DALL-E 2", section 2.1).

    Attributes:
      size: length of the vector; 768 for CLIP ViT-L/14.
      vector_width: length of the network's vector.
      tokens: number of extra tokens; 4 in the paper. 0 for none.
      width: channels of these tokens.
      drop_rate: probability of showing the null in training; 0.1 in the paper.
      null: a vector in place of the embedding, before it is projected. See `Null`.
    """

    size: int
    vector_width: int
    tokens: int = 0
    width: int | None = None
    drop_rate: float = 0.1
    null: Null = "learned"

    def __post_init__(self):
        positive(self, "size", "vector_width", "width")
        nulls.check(self.null, self.drop_rate)
        both = (self.tokens > 0) == (self.width is not None)
        expect(
            both and self.tokens >= 0,
            "tokens",
            self.tokens,
            "a count, with width if it is not 0",
            "give both",
        )
        super().__post_init__()

    @nn.compact
    def __call__(self, values: Float[Array, "batch size"], drop: Bool[Array, "batch"]) -> Embeddings:
        shown = nulls.replace_dropped(self, self.null, values, drop, nn.initializers.normal(1.0))
        vector = Dense(self.vector_width, name="vector")(shown)
        if self.width is None:
            return Embeddings(vector=vector)
        rows = Dense(self.tokens * self.width, name="tokens")(shown)
        features = rows.reshape(-1, self.tokens, self.width)
        return Embeddings(vector=vector, tokens=Tokens(features, jnp.ones(features.shape[:2], bool)))
