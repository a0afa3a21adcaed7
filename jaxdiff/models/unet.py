"""The U-Net of ADM (Dhariwal & Nichol 2021), DDPM++'s (Song et al. 2021) with adaptive group norm."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError, require
from jaxdiff.models.blocks import Block, Downsample, Resample, Upsample
from jaxdiff.models.layers import Conv, GroupNorm, check_dtype
from jaxdiff.typing import Features, Images


@dataclasses.dataclass(frozen=True)
class Level:
    """One resolution of a U-Net; the next level has half of it.

    Attributes:
      width: channels.
      blocks: residual blocks on the way down; there is one more on the way up.
      self_attention: whether pixels attend to each other after every block.
      cross_attention: whether pixels attend to the tokens after every block.
      dropout: rate inside the residual blocks.
    """

    width: int
    blocks: int = 2
    self_attention: bool = False
    cross_attention: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        require(self.width > 0, "width", self.width, "a level needs channels", "try 64")
        require(self.blocks > 0, "blocks", self.blocks, "a level needs a block", "give at least 1")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "it is outside [0, 1)", "try 0.1")


class UNet(nn.Module):
    """Noisy images and embeddings to images of the same size. The output is 0 at initialisation.

    Attributes:
      levels: from the finest resolution to the coarsest.
      out_channels: of the output.
      head_dim: channels of an attention head.
      groups, min_group_size: at most so many groups in a norm, and at least so many channels in a group.
      residual_resampling: resolution changes inside a residual block (ADM), not by a convolution (DDPM).
      middle_attention: self-attention between the two blocks at the coarsest resolution.
      dtype: in which convolutions and attention compute; parameters and statistics are float32 in any case.
      remat: recompute each block in the backward pass instead of keeping it: less memory, a third more work.
    """

    levels: tuple[Level, ...]
    out_channels: int
    head_dim: int = 32
    groups: int = 32
    min_group_size: int = 4
    residual_resampling: bool = True
    middle_attention: bool = True
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        require(len(self.levels) > 0, "levels", self.levels, "there is no level", "give at least one Level")
        for name in ("out_channels", "head_dim", "groups", "min_group_size"):
            require(
                getattr(self, name) > 0, name, getattr(self, name), "it must be positive", "give at least 1"
            )
        check_dtype(self.dtype)
        for i, level in enumerate(self.levels):
            last = i == len(self.levels) - 1
            attends = level.self_attention or level.cross_attention or (last and self.middle_attention)
            require(not attends or level.width % self.head_dim == 0, f"levels[{i}].width", level.width,
                    f"attention there splits it into heads of head_dim={self.head_dim} channels",
                    "use a multiple of head_dim, or another head_dim")  # fmt: skip
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Images, embeddings: Embeddings, *, train: bool) -> Features:
        """Predict what the parameterization asks for.

        Args:
          x: scaled noisy images.
          embeddings: the vector is needed; tokens are needed by, and need, a level with cross-attention.
          train: whether dropout is on; it draws from the "dropout" key.

        Returns:
          Images with `out_channels` channels, float32.
        """
        self._check(x, embeddings)
        # Every block would begin with the same SiLU (ADM's emb_layers), so it is taken once.
        vector: Any = embeddings.vector  # `_check` has seen that it is there
        context = (jax.nn.silu(vector), embeddings.tokens)
        last = len(self.levels) - 1

        def block(name: str, h: Images, level: Level, resample: Resample = "none") -> Features:
            # nn.remat would put its own class into a default name: every name is given.
            cls = nn.remat(Block) if self.remat else Block
            dropout = level.dropout if train else 0.0
            module = cls(
                level.width, level.self_attention, level.cross_attention, dropout, self.head_dim, self.groups,
                self.min_group_size, self.dtype, resample, name=name,
            )  # fmt: skip
            return module(h, *context)

        def change(name: str, h: Images, level: Level, resample: Resample) -> Features:
            if self.residual_resampling:
                return block(name, h, _without_attention(level), resample)
            cls = Downsample if resample == "down" else Upsample
            return cls(level.width, dtype=self.dtype, name=name)(h)

        if embeddings.spatial is not None:
            x = jnp.concatenate([x, embeddings.spatial.astype(x.dtype)], axis=-1)
        h = Conv(self.levels[0].width, dtype=self.dtype, name="stem")(x)
        skips = [h]
        for i, level in enumerate(self.levels):
            for j in range(level.blocks):
                h = block(f"encoder_{i}_block_{j}", h, level)
                skips.append(h)
            if i < last:
                h = change(f"down_{i}", h, level, "down")
                skips.append(h)

        middle = dataclasses.replace(self.levels[-1], self_attention=self.middle_attention)
        h = block("middle_block_0", h, middle)
        h = block("middle_block_1", h, _without_attention(middle))

        for i, level in reversed(list(enumerate(self.levels))):
            for j in range(level.blocks + 1):
                h = block(f"decoder_{i}_block_{j}", jnp.concatenate([h, skips.pop()], axis=-1), level)
            if i > 0:
                h = change(f"up_{i}", h, level, "up")

        exact = jnp.promote_types(self.dtype, jnp.float32)
        h = GroupNorm(self.groups, self.min_group_size, name="head_norm")(h.astype(exact))
        return Conv(self.out_channels, zero=True, dtype=exact.name, name="head")(h)

    @nn.nowrap
    def _check(self, x: Images, embeddings: Embeddings) -> None:
        """What can be known only when the images and conditions are seen."""
        size, factor = x.shape[1:3], 2 ** (len(self.levels) - 1)
        require(not any(side % factor for side in size), "image_shape", size,
                f"{len(self.levels)} levels halve it to a fraction of a pixel",
                f"use multiples of {factor}, or fewer levels")  # fmt: skip
        require(embeddings.vector is not None, "vector", None, "the norms of this network adapt to one",
                "use a noise embedding that fills the vector slot")  # fmt: skip
        spatial = embeddings.spatial
        require(spatial is None or spatial.shape[1:3] == size, "spatial",
                None if spatial is None else spatial.shape[1:3], f"the noisy images are {size}",
                "resize the condition to the image")  # fmt: skip
        reads = any(level.cross_attention for level in self.levels)
        if embeddings.tokens is not None and not reads:
            raise UserError(
                "levels: a condition gives tokens and no level reads them. "
                "Fix: set cross_attention=True on a level"
            )
        if embeddings.tokens is None and reads:
            raise UserError(
                "levels: a level has cross_attention and no condition gives tokens. "
                "Fix: add such a condition, or set cross_attention=False"
            )


def _without_attention(level: Level) -> Level:
    return dataclasses.replace(level, self_attention=False, cross_attention=False)
