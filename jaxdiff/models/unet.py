"""One U-Net for the pixel-space family: DDPM, DDPM++, NCSN++, ADM, SR3, Palette, Imagen and U-ViT by its options."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError, require
from jaxdiff.models.blocks import Block, BlockOptions, Downsample, InputPath, Modulation, Upsample, scaled
from jaxdiff.models.layers import Conv
from jaxdiff.models.resampling import Resample, from_patches, to_patches
from jaxdiff.models.transformer import Transformer, TransformerLevel
from jaxdiff.typing import Features, Images

DecoderAttention = Literal["every", "last"]


@dataclasses.dataclass(frozen=True)
class Level:
    """One resolution of a U-Net; the next level has half of it.

    Attributes:
      width: channels.
      blocks: residual blocks on the way down; on the way up there is one more, see `UNet.resampled_skips`.
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
        require(self.blocks >= 0, "blocks", self.blocks, "it is a number of blocks", "give at least 0")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "it is outside [0, 1)", "try 0.1")

    @property
    def attends(self) -> bool:
        return self.self_attention or self.cross_attention


class UNet(nn.Module):
    """Noisy images and embeddings to images of the same size. The output is 0 at initialisation.

    Without options it is ADM's (Dhariwal & Nichol 2021).

    Attributes:
      levels: from the finest resolution to the coarsest.
      out_channels: of the output.
      patch: squares of so many pixels are the channels of one place, on which the network then works: nearly `patch**2`
        times less work at each width (Luhman & Luhman 2022; Hoogeboom et al. 2023, "simple diffusion").
      coordinates: two more channels of the input say where each pixel is, from -1 to 1 (Liu et al. 2018, "CoordConv").
      stem_width: channels of the first convolution; the first level's width if None (half of it: DDPM++, CIFAR-10).
      middle: a transformer in place of the two blocks at the coarsest resolution (U-ViT).
      head_dim: channels of an attention head; None with a fixed number of them, `heads`.
      groups, min_group_size: at most so many groups in a norm, and at least so many channels in a group.
      eps: of the norms, added to the variance.
      modulation: how blocks adapt to the vector. "scale_shift" scales and shifts their second norm (ADM), "shift" adds
        to what is normalised (DDPM).
      skip_scale: factor of every sum of two branches; ``sqrt(1/2)`` in NCSN++ and SR3.
      resample_taps: the filter of residual resampling, see `resampling.resample`.
      project_resampled: a 1 x 1 convolution on the skip of a block that resamples, whatever its width (DDPM++).
      residual_resampling: resolution changes inside a residual block (ADM), not by a convolution (DDPM).
      pad_end: see `Downsample`; for convolutions only.
      resampled_skips: the stem and every downsampled image are joined on the way up, too, by one block more at each
        level; without them it has as many blocks as the way down (Imagen).
      middle_attention: self-attention between the two blocks at the coarsest resolution.
      decoder_attention: on the way up, after "every" block of a level or only after its "last" (DDPM++).
      residual_input: the input, downsampled, is added at every level (NCSN++).
      dtype: in which convolutions and attention compute; parameters and statistics are float32 in any case.
      remat: recompute each block in the backward pass instead of keeping it: less memory, a third more work.
    """

    levels: tuple[Level, ...]
    out_channels: int
    patch: int = 1
    coordinates: bool = False
    stem_width: int | None = None
    middle: TransformerLevel | None = None
    head_dim: int | None = 32
    heads: int | None = None
    groups: int = 32
    min_group_size: int = 4
    eps: float = 1e-5
    modulation: Modulation = "scale_shift"
    skip_scale: float = 1.0
    resample_taps: tuple[float, ...] = (1.0, 1.0)
    project_resampled: bool = False
    residual_resampling: bool = True
    pad_end: bool = False
    resampled_skips: bool = True
    middle_attention: bool = True
    decoder_attention: DecoderAttention = "every"
    residual_input: bool = False
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        require(len(self.levels) > 0, "levels", self.levels, "there is no level", "give at least one Level")
        require(
            self.out_channels > 0, "out_channels", self.out_channels, "it must be positive", "give at least 1"
        )
        require(self.patch > 0, "patch", self.patch, "it is a side in pixels", "give 1 or more")
        stem = self.stem_width
        require(stem is None or stem > 0, "stem_width", stem, "it must be positive", "give at least 1")
        require(self.decoder_attention in ("every", "last"), "decoder_attention", self.decoder_attention,
                "no such place", "give 'every' or 'last'")  # fmt: skip
        options = self._options()
        for i, level in enumerate(self.levels):
            attends = level.attends or (
                level is self.levels[-1] and self.middle_attention and not self.middle
            )
            require(not attends or options.divides(level.width), f"levels[{i}].width", level.width,
                    f"attention there splits it into heads (head_dim={self.head_dim}, heads={self.heads})",
                    "use a multiple of head_dim or heads, or change those")  # fmt: skip
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Images, embeddings: Embeddings, *, train: bool) -> Features:
        """Predict what the parameterization asks for.

        Args:
          x: scaled noisy images.
          embeddings: the vector is needed; tokens are needed by, and need, a part that attends to them.
          train: whether dropout is on; it draws from the "dropout" key.

        Returns:
          Images with `out_channels` channels, float32.
        """
        self._check(x, embeddings)
        # Every block would begin with the same SiLU (ADM's emb_layers), so it is taken once.
        vector: Any = embeddings.vector  # `_check` has seen that it is there
        vector = jax.nn.silu(vector)
        block = self._blocks(vector, embeddings.tokens, train)
        change = self._changes(block)

        if embeddings.spatial is not None:
            x = jnp.concatenate([x, embeddings.spatial.astype(x.dtype)], axis=-1)
        if self.coordinates:
            x = jnp.concatenate([x, places(x)], axis=-1)
        path = x = to_patches(x, self.patch)
        h = Conv(self.stem_width or self.levels[0].width, dtype=self.dtype, name="stem")(x)
        skips = [h] if self.resampled_skips else []
        for i, level in enumerate(self.levels):
            for j in range(level.blocks):
                h = block(f"encoder_{i}_block_{j}", h, level)
                skips.append(h)
            if i + 1 < len(self.levels):
                h = change(f"down_{i}", h, i, "down")
                if self.residual_input:
                    path = InputPath(level.width, self.resample_taps, self.dtype, name=f"input_{i}")(path)
                    h = path = scaled(h + path, self.skip_scale)
                if self.resampled_skips:
                    skips.append(h)

        coarsest = self.levels[-1]
        if self.middle is not None:
            transformer = Transformer(self.middle, self.dtype, self.remat, name="middle")
            h = transformer(h, vector, embeddings.tokens, train=train)
        else:
            h = block(
                "middle_block_0", h, _attending(coarsest, self.middle_attention, coarsest.cross_attention)
            )
            h = block("middle_block_1", h, _attending(coarsest, False, False))

        for i, level in reversed(list(enumerate(self.levels))):
            count = level.blocks + int(self.resampled_skips)
            for j in range(count):
                attends = self.decoder_attention == "every" or j == count - 1
                here = level if attends else _attending(level, False, False)
                h = block(f"decoder_{i}_block_{j}", jnp.concatenate([h, skips.pop()], axis=-1), here)
            if i > 0:
                h = change(f"up_{i}", h, i, "up")

        exact = jnp.promote_types(self.dtype, jnp.float32)
        h = self._options().norm("head_norm")(h.astype(exact))
        width = self.out_channels * self.patch**2
        return from_patches(Conv(width, zero=True, dtype=exact.name, name="head")(h), self.patch)

    @nn.nowrap
    def _options(self) -> BlockOptions:
        return BlockOptions(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(BlockOptions)}
        )

    @nn.nowrap
    def _blocks(self, vector: Any, tokens: Any, train: bool) -> Callable:
        """``block(name, h, level, resample)``, with all that is the same for every block."""
        # nn.remat would put its own class into a default name: every name is given.
        cls, options = nn.remat(Block) if self.remat else Block, self._options()

        def block(name: str, h: Images, level: Level, resample: Resample = "none") -> Features:
            dropout = level.dropout if train else 0.0
            attention = (level.self_attention, level.cross_attention)
            return cls(level.width, options, *attention, dropout, resample, name=name)(h, vector, tokens)

        return block

    @nn.nowrap
    def _changes(self, block: Callable) -> Callable:
        """``change(name, h, i, resample)``: the way down from level i, and the way up from it, at its width."""

        def change(name: str, h: Images, i: int, resample: Resample) -> Features:
            level = self.levels[i]
            if self.residual_resampling:
                return block(name, h, _attending(level, False, False), resample)
            if resample == "down":
                return Downsample(level.width, self.pad_end, self.dtype, name=name)(h)
            return Upsample(level.width, self.dtype, name=name)(h)

        return change

    @nn.nowrap
    def _check(self, x: Images, embeddings: Embeddings) -> None:
        """What can be known only when the images and conditions are seen."""
        check_inputs(self.levels, x, embeddings, self.patch)
        reads = any(level.cross_attention for level in self.levels)
        reads = reads or (self.middle is not None and self.middle.cross_attention)
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


def places(x: Images) -> Features:
    """How far down and how far to the right each pixel of `x` lies, from -1 to 1 between the image's edges."""
    down, right = ((2 * jnp.arange(side, dtype=x.dtype) + 1) / side - 1 for side in x.shape[1:3])
    return jnp.broadcast_to(jnp.stack(jnp.meshgrid(down, right, indexing="ij"), axis=-1), (*x.shape[:3], 2))


def check_inputs(levels: Sequence[Level], x: Images, embeddings: Embeddings, patch: int = 1) -> None:
    """Raise `UserError` where a network of such levels cannot work on images, or lacks what it adapts to."""
    size, factor = x.shape[1:3], patch * 2 ** (len(levels) - 1)
    require(not any(side % factor for side in size), "image_shape", size,
            f"{len(levels)} levels, at patches of {patch}, leave a fraction of a pixel",
            f"use multiples of {factor}, or fewer levels")  # fmt: skip
    require(embeddings.vector is not None, "vector", None, "the blocks of this network adapt to one",
            "use a noise embedding that fills the vector slot")  # fmt: skip
    spatial = embeddings.spatial
    require(spatial is None or spatial.shape[1:3] == size, "spatial",
            None if spatial is None else spatial.shape[1:3], f"the noisy images are {size}",
            "resize the condition to the image")  # fmt: skip


def _attending(level: Level, self_attention: bool, cross_attention: bool) -> Level:
    return dataclasses.replace(level, self_attention=self_attention, cross_attention=cross_attention)
