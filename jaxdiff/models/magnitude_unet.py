"""The magnitude-preserving U-Net of EDM2 (Karras et al. 2024, configuration G, figure 21 and table 6)."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError, require
from jaxdiff.models.attention import attend
from jaxdiff.models.layers import check_dtype
from jaxdiff.models.magnitude import MagnitudeConv, MagnitudeDense, gain, mp_cat, mp_silu, mp_sum, normalize
from jaxdiff.models.resampling import Resample, resample
from jaxdiff.models.unet import Level, check_inputs
from jaxdiff.typing import Array, Features, Float, Images

READ = ("width", "blocks", "self_attention", "dropout")
"""What this network reads of a `Level`."""


class MagnitudeBlock(nn.Module):
    """A residual block, then cosine attention if asked for, each joined to its input by `mp_sum`.

    The encoder's normalises the pixels of its input, so that each has a mean square of 1. The vector scales the
    features between the two convolutions by ``1 + gain W vector``; the gain starts at 0. All statistics are float32.

    Attributes:
      encoder: whether the block is one of the way down.
      head_dim: channels of an attention head; None for no attention.
      residual_balance, attention_balance: the shares of the two branches in their sums.
      clip: what no activation exceeds after the block; None for no bound.
    """

    width: int
    encoder: bool
    head_dim: int | None = None
    dropout: float = 0.0
    resample: Resample = "none"
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    clip: float | None = 256.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images, vector: Float[Array, "batch embed"]) -> Features:
        conv = functools.partial(MagnitudeConv, self.width, dtype=self.dtype)
        x = resample(x, self.resample)
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
    """Noisy images and embeddings to images of the same size. The output is 0 at initialisation.

    No norm and no bias: a channel of ones beside the images takes the place of the biases. Convolutions, and not
    activations, are normalised, so that nothing grows in training. Pair it with `conditioning.magnitude`, whose vectors
    have unit variance together, with inputs of unit variance (`prediction.Edm`), and with
    ``AdamW(unit_weights="weight")``.

    Attributes:
      levels: from the finest resolution to the coarsest; none may ask for cross-attention.
      out_channels: of the output.
      head_dim: channels of an attention head.
      middle_attention: self-attention in the first of the two blocks at the coarsest resolution.
      residual_balance, attention_balance: the shares of a block's branches in their sums with its input.
      concat_balance: the share of the skip in the decoder's inputs.
      clip: what no activation exceeds; None for no bound.
      dtype: in which convolutions and attention compute; parameters and statistics are float32 in any case.
      remat: recompute each block in the backward pass instead of keeping it: less memory, a third more work.
    """

    levels: tuple[Level, ...]
    out_channels: int
    head_dim: int = 64
    middle_attention: bool = True
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    concat_balance: float = 0.5
    clip: float | None = 256.0
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        require(len(self.levels) > 0, "levels", self.levels, "there is no level", "give at least one Level")
        for name in ("out_channels", "head_dim"):
            value = getattr(self, name)
            require(value > 0, name, value, "it must be positive", "give at least 1")
        for name in ("residual_balance", "attention_balance", "concat_balance"):
            value = getattr(self, name)
            require(
                0 < value < 1, name, value, "it is the share of one of two", "give a number between 0 and 1"
            )
        require(self.clip is None or self.clip > 0, "clip", self.clip, "nothing would be left", "try 256.0")
        check_dtype(self.dtype)
        for i, level in enumerate(self.levels):
            last = i == len(self.levels) - 1
            attends = level.self_attention or (last and self.middle_attention)
            require(not attends or level.width % self.head_dim == 0, f"levels[{i}].width", level.width,
                    f"attention there splits it into heads of head_dim={self.head_dim} channels",
                    "use a multiple of head_dim, or another head_dim")  # fmt: skip
            for field in dataclasses.fields(level):
                value = getattr(level, field.name)
                require(field.name in READ or value == field.default, f"levels[{i}].{field.name}", value,
                        "this network does not read it", "leave it out, or use jaxdiff.models.unet:UNet")  # fmt: skip
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Images, embeddings: Embeddings, *, train: bool) -> Features:
        """Predict what the parameterization asks for.

        Args:
          x: scaled noisy images, of unit variance.
          embeddings: the vector is needed; tokens are refused.
          train: whether dropout is on; it draws from the "dropout" key.

        Returns:
          Images with `out_channels` channels, float32.
        """
        self._check(x, embeddings)
        # Every block would begin with the same activation, so it is taken once.
        vector: Any = embeddings.vector  # `_check` has seen that it is there
        vector = mp_silu(vector)
        last = len(self.levels) - 1

        def block(
            name: str, h: Images, level: Level, attention: bool, encoder: bool, resample: Resample = "none"
        ) -> Features:
            # nn.remat would put its own class into a default name: every name is given.
            cls = nn.remat(MagnitudeBlock) if self.remat else MagnitudeBlock
            module = cls(
                level.width, encoder, self.head_dim if attention else None, level.dropout if train else 0.0, resample,
                self.residual_balance, self.attention_balance, self.clip, self.dtype, name=name,
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
        """What can be known only when the images and conditions are seen."""
        check_inputs(self.levels, x, embeddings)
        if embeddings.tokens is not None:
            raise UserError(
                "tokens: a condition gives them and this network has no cross-attention. "
                "Fix: leave the condition out, or use jaxdiff.models.unet:UNet"
            )
