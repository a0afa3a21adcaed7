"""Precomputed embeddings: the outputs of a frozen encoder of text, or of anything else, as a condition."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.condition import Condition, Shape
from jaxdiff.conditioning.nulls import Null
from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import UserError, expect, positive
from jaxdiff.models.layers import Dense, LayerNorm
from jaxdiff.typing import Array, Bool, Float


class EmbeddedSequence(Condition):
    """Embedded sequence: vectors of a frozen encoder as tokens (Saharia et al. 2022, "Imagen", sections 2.1 and 2.4).

    The vectors are projected and normalised, for cross-attention. With `vector_width`, their mean through two dense
    layers is added to the vector that drives the norms. A vector of zeros pads a short sequence: it is not attended to
    and does not count in the mean.

    Attributes:
      size: length of an encoder's vector; 4096 for T5-XXL.
      length: number of vectors in the longest sequence.
      width: channels of the tokens.
      vector_width: length of the network's vector; None for tokens only.
      drop_rate: probability of showing the null in training.
      null: one token instead of the sequence, see `Null`.
    """

    size: int
    length: int
    width: int
    vector_width: int | None = None
    drop_rate: float = 0.1
    null: Null = "learned"

    def __post_init__(self):
        positive(self, "size", "length", "width", "vector_width")
        nulls.check(self.null, self.drop_rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, values: Float[Array, "batch length size"], drop: Bool[Array, "batch"]) -> Embeddings:
        mask = jnp.any(values != 0, axis=-1)
        if self.null != "none":
            # All positions of a null are equal, so one token is enough.
            first = jnp.arange(values.shape[1]) == 0
            mask = jnp.where(drop[:, None], first[None], mask)
        tokens = LayerNorm(name="norm")(Dense(self.width, name="project")(values))
        tokens = nulls.replace_dropped(self, self.null, tokens, drop, nn.initializers.normal(1.0))
        vector = None
        if self.vector_width is not None:
            shown = mask[..., None].astype(tokens.dtype)
            mean = jnp.sum(shown * tokens, axis=1) / jnp.maximum(jnp.sum(shown, axis=1), 1)
            hidden = jax.nn.silu(Dense(self.vector_width, name="dense_0")(mean))
            vector = Dense(self.vector_width, name="dense_1")(hidden)
        return Embeddings(vector=vector, tokens=Tokens(tokens, mask))

    @nn.nowrap
    def example(self, batch: int, data_shape: Shape | None = None) -> Float[Array, "batch length size"]:
        return jnp.zeros((batch, self.length, self.size))

    @nn.nowrap
    def read(self, value: object, name: str = "embedding") -> np.ndarray:
        """One sequence or several of equal length, padded with zeros to `length`."""
        given = np.asarray(value)
        missing = self.length - given.shape[-2] if given.ndim > 1 else 0
        if missing <= 0:
            return given
        return np.pad(given, [(0, 0)] * (given.ndim - 2) + [(0, missing), (0, 0)])

    @nn.nowrap
    def check(self, values: object, name: str = "embedding") -> None:
        """Raise `UserError` unless these are sequences of finite vectors of the right length and size."""
        array = np.asarray(values)
        got = f"{array.dtype}{list(array.shape)}"
        if not np.issubdtype(array.dtype, np.floating) or array.shape[1:] != (self.length, self.size):
            raise UserError(
                f"{name}={got}: expected sequences of the encoder's vectors, got {got}. "
                f"Fix: give floats [n, {self.length}, {self.size}], or shorter sequences"
            )
        finite = bool(np.all(np.isfinite(array)))
        expect(finite, name, got, "finite numbers", "remove NaN and infinity", "NaN or infinity")
