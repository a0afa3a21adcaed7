"""The magnitude-preserving U-Net of EDM2 (Karras et al. 2024, configuration G, figure 21 and table 6)."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError, between, expect, positive
from jaxdiff.models.attention import attend
from jaxdiff.models.layers import check_dtype
from jaxdiff.models.magnitude import MagnitudeConv, MagnitudeDense, gain, mp_cat, mp_silu, mp_sum, normalize
from jaxdiff.models.resampling import Resample, check_taps, resample
from jaxdiff.models.slots import check_inputs, check_unread
from jaxdiff.typing import Array, Features, Float, Images


@dataclasses.dataclass(frozen=True)
class MagnitudeLevel:
    """One resolution of a `MagnitudeUNet`; the next level has half of it.

    Attributes:
      width: channels.
      blocks: residual blocks of the encoder; the decoder has one more.
      self_attention: cosine attention of pixels after every block.
      dropout: dropout rate in the residual blocks.
    """

    width: int
    blocks: int = 2
    self_attention: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        positive(self, "width")
        expect(self.blocks >= 0, "blocks", self.blocks, "a number of blocks >= 0", "give at least 0")
        between(self, "dropout", 0.0, 1.0, open_high=True)


class MagnitudeBlock(nn.Module):
    """A residual block, then optional cosine attention, each joined to its input by `mp_sum`.

    Encoder blocks normalise the pixels of their input to a mean square of 1. The vector scales the features between
    the two convolutions by ``1 + gain W vector``; the gain starts at 0. All statistics are float32.

    Attributes:
      encoder: whether the block belongs to the encoder.
      head_dim: channels of an attention head; None for no attention.
      residual_balance, attention_balance: weights of the two branches in their sums.
      clip: bound on the magnitude of the block's output; None for no bound.
      resample_taps: filter of resampling, see `resampling.resample`.
    """

    width: int
    encoder: bool
    head_dim: int | None = None
    dropout: float = 0.0
    resample: Resample = "none"
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    clip: float | None = 256.0
    resample_taps: tuple[float, ...] = (1.0, 1.0)
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images, vector: Float[Array, "batch embed"]) -> Features:
        conv = functools.partial(MagnitudeConv, self.width, dtype=self.dtype)
        x = resample(x, self.resample, self.resample_taps)
        project = conv(size=1, name="skip") if x.shape[-1] != self.width else lambda x: x
        if self.encoder:
            x = normalize(project(x))
        h = conv(name="conv_0")(mp_silu(x))
        scale = 1 + MagnitudeDense(self.width, name="modulation")(vector, gain(self, "gain"))
        h = mp_silu(h * scale[:, None, None].astype(h.dtype))
        if self.dropout:
            h = nn.Dropout(self.dropout, deterministic=False, name="dropout")(h)
        h = conv(name="conv_1")(h)
        x = mp_sum(x if self.encoder else project(x), h, self.residual_balance)
        if self.head_dim is not None:
            h = MagnitudeAttention(self.head_dim, self.dtype, name="attention")(x)
            x = mp_sum(x, h, self.attention_balance)
        return x if self.clip is None else jnp.clip(x, -self.clip, self.clip)


class MagnitudeAttention(nn.Module):
    """Attention of pixels by the cosine of queries and keys (the paper's section 2.3), without its residual sum.

    Queries, keys and values are normalised to a mean square of 1 for each pixel and head, so that the logits lie
    between ``-sqrt(head_dim)`` and ``sqrt(head_dim)``. The outputs of the first layer are ordered by head.
    """

    head_dim: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images) -> Images:
        batch, height, width, channels = x.shape
        heads = channels // self.head_dim
        h = MagnitudeConv(3 * channels, size=1, dtype=self.dtype, name="query_key_value")(x)
        h = normalize(h.reshape(batch, height * width, heads, 3, self.head_dim))
        h = attend(h[:, :, :, 0], h[:, :, :, 1], h[:, :, :, 2]).reshape(x.shape)
        return MagnitudeConv(channels, size=1, dtype=self.dtype, name="out")(h)


class MagnitudeUNet(nn.Module):
    """EDM2's U-Net: noisy images and embeddings to images of the same size. The output is 0 at initialisation.

    There are no norms and no biases: an input channel of ones replaces the biases. Weights rather than activations are
    normalised, so that nothing grows in training. Pair it with `conditioning.magnitude`, whose vectors
    have unit variance together, with inputs of unit variance (`prediction.Edm`), and with
    ``AdamW(unit_weights="weight")``.

    Attributes:
      levels: from the finest resolution to the coarsest.
      out_channels: channels of the output.
      head_dim: channels of an attention head.
      middle_attention: self-attention in the first of the two middle blocks.
      residual_balance, attention_balance: weights of a block's branches in their sums with its input.
      concat_balance: weight of the skip in the decoder's inputs.
      clip: bound on the magnitude of activations; None for no bound.
      resample_taps: filter of resampling, see `resampling.resample`.
      dtype: in which convolutions and attention compute; parameters and statistics are always float32.
      remat: recompute each block in the backward pass instead of storing it: less memory, a third more work.
    """

    levels: tuple[MagnitudeLevel, ...]
    out_channels: int
    head_dim: int = 64
    middle_attention: bool = True
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    concat_balance: float = 0.5
    clip: float | None = 256.0
    resample_taps: tuple[float, ...] = (1.0, 1.0)
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        expect(len(self.levels) > 0, "levels", self.levels, "at least one level", "give at least one level")
        positive(self, "out_channels", "head_dim", "clip")
        for name in ("residual_balance", "attention_balance", "concat_balance"):
            between(self, name, 0.0, 1.0, open_low=True, open_high=True)
        check_taps(self.resample_taps)
        check_dtype(self.dtype)
        for i, level in enumerate(self.levels):
            last = i == len(self.levels) - 1
            attends = level.self_attention or (last and self.middle_attention)
            expect(
                not attends or level.width % self.head_dim == 0,
                f"levels[{i}].width",
                level.width,
                f"channels that split into attention heads of head_dim={self.head_dim}",
                "use a multiple of head_dim, or another head_dim",
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Images, embeddings: Embeddings, *, train: bool) -> Features:
        """Predict the parameterization's target.

        Args:
          x: scaled noisy images, of unit variance.
          embeddings: `vector` is required; `tokens` are refused.
          train: whether dropout is on; it draws from the "dropout" key.

        Returns:
          Images with `out_channels` channels, float32.
        """
        self._check(x, embeddings)
        # Every block would begin with the same activation, so it is applied once.
        vector: Any = embeddings.vector  # `_check` has seen that it is there
        vector = mp_silu(vector)
        last = len(self.levels) - 1

        def block(
            name: str,
            h: Images,
            level: MagnitudeLevel,
            attention: bool,
            encoder: bool,
            resample: Resample = "none",
        ) -> Features:
            # nn.remat would put its own class into a default name: every name is given.
            cls = nn.remat(MagnitudeBlock) if self.remat else MagnitudeBlock
            module = cls(
                level.width, encoder, self.head_dim if attention else None, level.dropout if train else 0.0, resample,
                self.residual_balance, self.attention_balance, self.clip, self.resample_taps, self.dtype, name=name,
            )  # fmt: skip
            return module(h, vector)

        ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
        spatial = [] if embeddings.spatial is None else [embeddings.spatial.astype(x.dtype)]
        x = jnp.concatenate([x, *spatial, ones], axis=-1)
        h = MagnitudeConv(self.levels[0].width, dtype=self.dtype, name="stem")(x)
        skips = [h]
        for i, level in enumerate(self.levels):
            if i > 0:
                above = dataclasses.replace(level, width=self.levels[i - 1].width)
                h = block(f"down_{i - 1}", h, above, False, True, "down")
                skips.append(h)
            for j in range(level.blocks):
                h = block(f"encoder_{i}_block_{j}", h, level, level.self_attention, True)
                skips.append(h)

        h = block("middle_block_0", h, self.levels[-1], self.middle_attention, False)
        h = block("middle_block_1", h, self.levels[-1], False, False)

        for i, level in reversed(list(enumerate(self.levels))):
            if i < last:
                below = dataclasses.replace(level, width=self.levels[i + 1].width)
                h = block(f"up_{i + 1}", h, below, False, False, "up")
            for j in range(level.blocks + 1):
                h = mp_cat(h, skips.pop(), self.concat_balance)
                h = block(f"decoder_{i}_block_{j}", h, level, level.self_attention, False)

        exact = jnp.promote_types(self.dtype, jnp.float32).name
        return MagnitudeConv(self.out_channels, dtype=exact, name="head")(h, gain(self, "gain"))

    @nn.nowrap
    def _check(self, x: Images, embeddings: Embeddings) -> None:
        """Errors that depend on the images and conditions."""
        check_inputs(len(self.levels), x, embeddings)
        check_unread(embeddings, "image_prompts", "residuals")
        if embeddings.tokens is not None:
            raise UserError(
                "tokens: expected no tokens, because this network has no cross-attention, got some. "
                "Fix: leave the condition out, or use jaxdiff.models.unet:UNet"
            )
