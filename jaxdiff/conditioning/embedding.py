"""Conditions that were embedded beforehand: the outputs of a frozen encoder of text, or of anything else."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.nulls import Null
from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import UserError, require
from jaxdiff.models.layers import Dense, LayerNorm
from jaxdiff.typing import Array, Bool, Float


class EmbeddedSequence(nn.Module):
    """A sequence of vectors from a frozen encoder, to attend to (Saharia et al. 2022, "Imagen", sections 2.1 and 2.4).

    The vectors are projected and normalised, for cross-attention. With `vector_width`, their mean through two dense
    layers joins the vector that drives the norms, too. A vector of zeros is no token: it pads a short sequence, is not
    attended to and does not count in the mean.

    Attributes:
      size: of a vector of the encoder; 4096 for T5-XXL.
      length: of the longest sequence.
      width: of the tokens that the network attends to.
      vector_width: length of the network's vector; None to leave it alone.
      drop_rate: how often training shows the null.
      null: one token in place of the sequence, see `Null`.
    """

    size: int
    length: int
    width: int
    vector_width: int | None = None
    drop_rate: float = 0.1
    null: Null = "learned"

    def __post_init__(self):
        for name in ("size", "length", "width", "vector_width"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "it must be positive", "give at least 1")
        nulls.check(self.null, self.drop_rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, values: Float[Array, "batch length size"], drop: Bool[Array, "batch"]) -> Embeddings:
        mask = jnp.any(values != 0, axis=-1)
        if self.null != "none":
            # One token is enough where all are the same.
            first = jnp.arange(values.shape[1]) == 0
            mask = jnp.where(drop[:, None], first[None], mask)
        tokens = LayerNorm(name="norm")(Dense(self.width, name="project")(values))
        tokens = nulls.instead(self, tokens, drop, nn.initializers.normal(1.0))
        vector = None
        if self.vector_width is not None:
            shown = mask[..., None].astype(tokens.dtype)
            mean = jnp.sum(shown * tokens, axis=1) / jnp.maximum(jnp.sum(shown, axis=1), 1)
            hidden = jax.nn.silu(Dense(self.vector_width, name="dense_0")(mean))
            vector = Dense(self.vector_width, name="dense_1")(hidden)
        return Embeddings(vector=vector, tokens=Tokens(tokens, mask))

    @nn.nowrap
    def example(
        self, batch: int, image_shape: tuple[int, int, int] | None = None
    ) -> Float[Array, "batch length size"]:
        return jnp.zeros((batch, self.length, self.size))

    @nn.nowrap
    def read(self, value: object) -> np.ndarray:
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
        each = (self.length, self.size)
        if not np.issubdtype(array.dtype, np.floating) or array.shape[1:] != each:
            given = f"{name}={array.dtype}{list(array.shape)}"
            fix = f"give floats [n, {self.length}, {self.size}], or shorter sequences"
            raise UserError(f"{given}: these are no sequences of the encoder's vectors. Fix: {fix}")
        finite = bool(np.all(np.isfinite(array)))
        require(
            finite,
            name,
            f"{array.dtype}{list(array.shape)}",
            "it holds NaN or infinity",
            "give finite numbers",
        )
