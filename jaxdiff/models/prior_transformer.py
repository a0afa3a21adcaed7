"""The prior of unCLIP: a causal transformer that denoises CLIP's image embeddings (Ramesh et al. 2022, "DALL-E 2").

`jaxdiff.interop.prior_transformer` fills it with published weights.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError, expect, one_of, positive
from jaxdiff.models.clip_text import ACTIVATIONS, ClipBlock
from jaxdiff.models.layers import Dense, LayerNorm, check_dtype, embedding_init
from jaxdiff.models.slots import check_unread
from jaxdiff.typing import Array, Bool, Float


class PriorTransformer(nn.Module):
    """Diffusion prior: noisy embeddings to the target of the parameterization (Ramesh et al. 2022, section 2.2).

    The sequence is the tokens of the conditions, such as those of `jaxdiff.models.unclip_text.PriorText`; the noise
    level, `Embeddings.vector`; the noisy embedding; and a learned query, whose last state is the output. Each position
    sees those before it. The position embedding is learned, so the number of tokens is fixed.

    Attributes:
      width: channels of the transformer, of the tokens and of the vector; 2048 in Karlo.
      layers: number of blocks; 20 in Karlo.
      heads: number of attention heads; 32 in Karlo.
      hidden: hidden width of the MLPs; four times `width` if None.
      activation: of the MLPs, a key of `jaxdiff.models.clip_text.ACTIVATIONS`.
      eps: of the norms.
      dtype: of attention and MLPs. Their sum, norms, the output and parameters are float32.
      remat: recompute each block in the backward pass instead of storing it: less memory, a third more work.
    """

    width: int
    layers: int
    heads: int
    hidden: int | None = None
    activation: str = "gelu"
    eps: float = 1e-5
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        positive(self, "width", "layers", "heads", "hidden", "eps")
        fix = "change one of them"
        expect(self.width % self.heads == 0, "width", self.width, f"a multiple of heads={self.heads}", fix)
        one_of(self, "activation", ACTIVATIONS)
        check_dtype(self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch dim"], embeddings: Embeddings, *, train: bool
    ) -> Float[Array, "batch dim"]:
        """Predict the parameterization's target.

        Args:
          x: noisy embeddings.
          embeddings: `vector` and `tokens` are required, both of `width` channels.
          train: without effect; there is no dropout.

        Raises:
          UserError: a slot is empty, has another width, or is not read.
        """
        self._check(embeddings)
        h, mask = self._sequence(x, embeddings)
        cls = nn.remat(ClipBlock) if self.remat else ClipBlock
        for i in range(self.layers):
            h = cls(self.heads, self.hidden, self.activation, self.eps, self.dtype, name=f"block_{i}")(
                h, mask
            )
        last = LayerNorm(self.eps, name="norm")(h[:, -1:])[:, 0]
        return Dense(x.shape[-1], name="leave")(last)

    @nn.nowrap
    def _sequence(
        self, x: Float[Array, "batch dim"], embeddings: Embeddings
    ) -> tuple[Float[Array, "batch length width"], Bool[Array, "batch length"]]:
        """The transformer's input with its positions, and which of them exist."""
        tokens, vector = embeddings.tokens, embeddings.vector
        assert tokens is not None
        assert vector is not None  # `_check` has seen that they are there
        enter = Dense(self.width, dtype=self.dtype, name="enter")(x).astype(jnp.float32)
        query = self.param("query", embedding_init(0.02), (1, self.width))
        query = jnp.broadcast_to(query[None], (x.shape[0], 1, self.width))
        parts = [tokens.features.astype(jnp.float32), vector[:, None], enter[:, None], query]
        h = jnp.concatenate(parts, axis=1)
        places = self.param("position_embedding", embedding_init(0.01), (h.shape[1], self.width))
        return h + places[None], jnp.pad(tokens.mask, ((0, 0), (0, 3)), constant_values=True)

    @nn.nowrap
    def _check(self, embeddings: Embeddings) -> None:
        for slot, what in (("vector", "the noise level"), ("tokens", "a text")):
            value = getattr(embeddings, slot)
            if value is None:
                raise UserError(
                    f"{slot}=None: expected {what} for the prior, got an empty slot. Fix: use a noise embedding, and a "
                    "condition that gives tokens"
                )
            width = jax.tree.leaves(value)[0].shape[-1]
            fix = "use this width in the noise embedding and in the conditions"
            expect(width == self.width, slot, width, f"the width of the prior, {self.width}", fix)
        check_unread(embeddings, "spatial", "controls", "image_prompts", "residuals")
