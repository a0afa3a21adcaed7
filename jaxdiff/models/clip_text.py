"""CLIP's text encoder: a causal transformer over the ids of a text (Radford et al. 2021).

Stable Diffusion reads its states as tokens (Rombach et al. 2022), and SDXL its pooled vector as well (Podell et al.
2023). `jaxdiff.interop.text_encoders` fills it with published weights.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Int

from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import between, expect, one_of, positive
from jaxdiff.models.layers import (
    Dense,
    FromHeads,
    LayerNorm,
    ToHeads,
    check_dtype,
    embedding_init,
    look_up,
)
from jaxdiff.typing import Array, Bool, Float

ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}
"""Activations of the MLPs: that of OpenAI's models, and the exact GELU of OpenCLIP's."""

UNKNOWN_END = 2
"""Id of the end in old configs, where no text has it: the end is the largest id of a text then."""


class ClipTextEncoder(nn.Module):
    """CLIP's text transformer: token and position embeddings, causal pre-norm blocks, a last norm.

    | model | width | layers | heads | activation | projection |
    |---|---|---|---|---|---|
    | Stable Diffusion 1, SDXL's first (CLIP ViT-L/14) | 768 | 12 | 12 | quick_gelu | None |
    | Stable Diffusion 2 (OpenCLIP ViT-H/14 without its last block) | 1024 | 23 | 16 | gelu | None |
    | SDXL's second (OpenCLIP ViT-bigG/14) | 1280 | 32 | 20 | gelu | 1280 |

    A text may consist of several windows of `length` ids, each with a begin and an end. Windows do not see each other,
    and their states form one sequence.

    Attributes:
      width: channels of the encoder and of its tokens.
      layers: number of blocks.
      heads: number of attention heads.
      hidden: hidden width of the MLPs; four times `width` if None.
      activation: of the MLPs, a key of `ACTIVATIONS`.
      vocabulary: number of ids.
      length: ids of a window, and rows of the position embedding.
      end: id of the end, at whose first position the state is pooled. With 2, as in old configs, it is the position
        of the largest id.
      projection: width of the pooled vector, by a matrix without bias; None for the state itself.
      layer: the states that are returned. -1 is the last block's output; -2 is that of the block before, as in SDXL;
        and so on to the embeddings. `jaxdiff.conditioning.text.Text` has the "clip skip" of a prompt.
      final_norm: whether the last norm follows on these states. SDXL leaves it out. The pooled state always has it.
      pooled: whether to return the pooled vector, too.
      eps: of the norms.
      dtype: of attention and MLPs. Their sum, norms and parameters are float32.
    """

    width: int
    layers: int
    heads: int
    hidden: int | None = None
    activation: str = "quick_gelu"
    vocabulary: int = 49408
    length: int = 77
    end: int = 49407
    projection: int | None = None
    layer: int = -1
    final_norm: bool = True
    pooled: bool = False
    eps: float = 1e-5
    dtype: str = "float32"

    def __post_init__(self):
        positive(self, "width", "layers", "heads", "hidden", "vocabulary", "length", "projection", "eps")
        expect(
            self.width % self.heads == 0,
            "width",
            self.width,
            f"a multiple of heads={self.heads}",
            "change one of them",
        )
        one_of(self, "activation", ACTIVATIONS)
        between(self, "layer", -self.layers - 1, -1)
        check_dtype(self.dtype)
        super().__post_init__()

    @property
    def most_skipped(self) -> int:
        """The largest `skip`: all blocks before the states of `layer`."""
        return self.layers + 1 + self.layer

    @nn.compact
    def __call__(self, ids: Int[Array, "batch ids"], skip: int = 0) -> Embeddings:
        """The states of texts as tokens [batch, ids, width], all of them valid, and the first window's pooled vector.

        Args:
          ids: of the texts.
          skip: number of blocks before `layer` at which the tokens are read; the pooled vector is not.

        Raises:
          UserError: more ids than `length`, and not a multiple of it.
        """
        batch, length = ids.shape[0], min(ids.shape[1], self.length)
        expect(
            ids.shape[1] % length == 0,
            "ids",
            ids.shape[1],
            f"windows of {self.length} ids",
            "use the model's tokenizer",
        )
        windows = ids.reshape(-1, length)
        states = self._states(windows)
        norm = LayerNorm(self.eps, name="norm")
        last = norm(states[-1])
        pooled = self._project(last[jnp.arange(windows.shape[0]), end_positions(windows, self.end)])
        chosen = states[self.layer - skip]
        if self.final_norm:
            chosen = norm(chosen)
        tokens = Tokens(chosen.reshape(batch, -1, self.width), jnp.ones(ids.shape, bool))
        first = pooled.reshape(batch, -1, pooled.shape[-1])[:, 0]
        return Embeddings(vector=first if self.pooled else None, tokens=tokens)

    @nn.nowrap
    def _states(self, ids: Int[Array, "windows length"]) -> list[Float[Array, "windows length width"]]:
        """The embeddings, then the output of each block."""
        table = self.param("token_embedding", embedding_init(0.02), (self.vocabulary, self.width))
        places = self.param("position_embedding", embedding_init(0.01), (self.length, self.width))
        states = [look_up(table, ids) + places[None, : ids.shape[1]]]
        for i in range(self.layers):
            block = ClipBlock(
                self.heads, self.hidden, self.activation, self.eps, self.dtype, name=f"block_{i}"
            )
            states.append(block(states[-1]))
        return states

    @nn.nowrap
    def _project(self, pooled: Float[Array, "windows width"]) -> Float[Array, "windows channels"]:
        if self.projection is None:
            return pooled
        return Dense(self.projection, bias=False, dtype=self.dtype, name="projection")(pooled)


class ClipBlock(nn.Module):
    """Pre-norm transformer block of CLIP's encoders (Radford et al. 2019, "GPT-2"; Radford et al. 2021).

    Attributes:
      heads: number of attention heads.
      hidden: hidden width of the MLP; four times the channels if None.
      activation: of the MLP, a key of `ACTIVATIONS`.
      causal: positions see themselves and those before, as in texts, rather than all.
    """

    heads: int
    hidden: int | None = None
    activation: str = "quick_gelu"
    eps: float = 1e-5
    dtype: str = "float32"
    causal: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length channels"], mask: Bool[Array, "batch length"] | None = None
    ) -> Float[Array, "batch length channels"]:
        """Transform a sequence; no position sees those where `mask` is False."""
        channels = x.shape[-1]
        h = LayerNorm(self.eps, name="norm_0")(x)
        h = ToHeads(3, self.heads, channels // self.heads, self.dtype, name="query_key_value")(h)
        shown = None if mask is None else mask[:, None, None]
        h = jax.nn.dot_product_attention(*h, mask=shown, is_causal=self.causal, implementation="xla")
        x = x + FromHeads(channels, self.dtype, zero=False, name="attention_out")(h)
        h = LayerNorm(self.eps, name="norm_1")(x)
        h = Dense(self.hidden or 4 * channels, dtype=self.dtype, name="expand")(h)
        return x + Dense(channels, dtype=self.dtype, name="contract")(ACTIVATIONS[self.activation](h))


def end_positions(ids: Int[Array, "batch length"], end: int) -> Int[Array, "batch"]:
    """The position of each text's end: the first id `end`, or the largest id if `end` is 2; 0 without an end."""
    return jnp.argmax(ids if end == UNKNOWN_END else ids == end, axis=1)
