"""One U-Net for DDPM, DDPM++, NCSN++, ADM, SR3, Palette, Imagen, U-ViT and Stable Diffusion, by its options."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.embeddings import Embeddings, Residuals
from jaxdiff.errors import UserError, between, expect, one_of, positive
from jaxdiff.models import reuse
from jaxdiff.models.blocks import Downsample, ResidualMiddle, Upsample, apply_block
from jaxdiff.models.interface import BlockInputs, BlockOptions, Grid, Part, reads_image_prompts
from jaxdiff.models.layers import Conv, check_dtype, scaled
from jaxdiff.models.progressive import InputPath, InputSkip, OutputPath, ResidualInput
from jaxdiff.models.resampling import Resample, from_patches, resample, to_patches
from jaxdiff.models.slots import add_residual, check_inputs, check_places, check_unread
from jaxdiff.typing import Features, Images

DecoderAttention = Literal["every", "last"]
Resampling = Literal["residual", "conv", "plain"]


class DecoderStep(NamedTuple):
    """A step of the decoder: a block, which reads a skip, the head of a level, or the way to the next level.

    Attributes:
      kind: "block", "head" or "up".
      level: position of the level.
      block: position of a block in its level.
    """

    kind: Literal["block", "head", "up"]
    level: int
    block: int = 0


@dataclasses.dataclass(frozen=True)
class Level:
    """One resolution of a U-Net; the next level has half of it.

    Attributes:
      width: channels.
      blocks: residual blocks of the encoder; the decoder has one more, see `UNet.resampled_skips`.
      attention: attention after every block: `PixelAttention`, `SpatialTransformer`, or None for none.
      dropout: dropout rate in the residual blocks.
    """

    width: int
    blocks: int = 2
    attention: Part | None = None
    dropout: float = 0.0

    def __post_init__(self):
        positive(self, "width")
        expect(self.blocks >= 0, "blocks", self.blocks, "a number of blocks >= 0", "give at least 0")
        between(self, "dropout", 0.0, 1.0, open_high=True)

    @property
    def reads_tokens(self) -> bool:
        return self.attention is not None and self.attention.reads_tokens


class UNet(nn.Module):
    """U-Net: noisy images and embeddings to images of the same size. The output is 0 at initialisation.

    Without options it is ADM's (Dhariwal & Nichol 2021).

    Attributes:
      levels: from the finest resolution to the coarsest.
      out_channels: channels of the output.
      block: options of all residual blocks and of the norms of `PixelAttention`.
      middle: the part at the coarsest resolution between encoder and decoder: `ResidualMiddle`, or a transformer
        (`TransformerMiddle`, U-ViT). Residual blocks there have the dropout rate of the coarsest level.
      patch: side of a square of pixels whose values become the channels of one position. The network then needs about
        `patch**2` times less work at each width (Luhman & Luhman 2022; Hoogeboom et al. 2023, "simple diffusion").
      coordinates: two more input channels with each pixel's position from -1 to 1 (Liu et al. 2018, "CoordConv").
      stem_width: channels of the first convolution; the first level's width if None (half of it: DDPM++, CIFAR-10).
      resampling: how the resolution changes between levels: inside a "residual" block (ADM), by a "conv" (DDPM), or
        "plain", by means of 2 x 2 pixels and repeated pixels without parameters (`conv_resample=False`).
      pad_end: see `Downsample`; for resampling="conv" only.
      resampled_skips: the stem's and the downsampled features are joined in the decoder too, by one more block at each
        level; otherwise the decoder has as many blocks as the encoder (Imagen).
      decoder_attention: in the decoder, attention after "every" block of a level or only after its "last" (DDPM++).
      input_path: the downsampled input enters every level: not at all, by a "skip", or as a "residual" (NCSN++).
      output_path: with "skip", the output is the sum of an image from every level, upsampled (Song et al. 2021,
        appendix H.1).
      dtype: in which convolutions and attention compute; parameters and statistics are always float32.
      remat: recompute each block in the backward pass instead of storing it: less memory, a third more work.
    """

    levels: tuple[Level, ...]
    out_channels: int
    block: BlockOptions = BlockOptions()
    middle: Part = ResidualMiddle()
    patch: int = 1
    coordinates: bool = False
    stem_width: int | None = None
    resampling: Resampling = "residual"
    pad_end: bool = False
    resampled_skips: bool = True
    decoder_attention: DecoderAttention = "every"
    input_path: InputPath = "none"
    output_path: OutputPath = "none"
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        expect(len(self.levels) > 0, "levels", self.levels, "at least one level", "give at least one Level")
        positive(self, "out_channels", "patch", "stem_width")
        one_of(self, "resampling", ("residual", "conv", "plain"))
        one_of(self, "decoder_attention", ("every", "last"))
        one_of(self, "input_path", ("none", "skip", "residual"))
        one_of(self, "output_path", ("none", "skip"))
        check_dtype(self.dtype)
        for i, level in enumerate(self.levels):
            if level.attention is not None:
                level.attention.check(level.width, f"levels[{i}].width")
        self.middle.check(*self._middle_width())
        super().__post_init__()

    @nn.nowrap
    def _middle_width(self) -> tuple[int, str]:
        """The channels of the middle, and the field that decides them: the last level may have no blocks."""
        width, field = self.stem_width or self.levels[0].width, "stem_width"
        for i, level in enumerate(self.levels):
            resampled = i + 1 < len(self.levels) and self.resampling != "plain"
            if level.blocks > 0 or resampled:
                width, field = level.width, f"levels[{i}].width"
        return width, field

    @nn.compact
    def __call__(self, x: Images, embeddings: Embeddings, *, train: bool) -> Features:
        """Predict the parameterization's target.

        Args:
          x: scaled noisy images.
          embeddings: `vector` is required; `tokens` are required if and only if a part reads them. `residuals` are
            added to the features.
          train: whether dropout is on; it draws from the "dropout" key.

        Returns:
          Images with `out_channels` channels, float32.
        """
        self._check(x, embeddings)
        inputs = self.block_inputs(embeddings, train)
        residuals = embeddings.residuals or Residuals()
        if embeddings.spatial is not None:
            x = jnp.concatenate([x, embeddings.spatial.astype(x.dtype)], axis=-1)
        check_places(residuals.features, tuple(self.places()))
        stem, reused = self.stem_input(x), reuse.reused(self)
        if reused is None:
            (h, skips), image = self.encode(stem, inputs, residuals.features), None
            check_places(residuals.skips, skips)
        else:
            (h, image), skips = reused.features, self._skips(stem, inputs, residuals.features, reused.blocks)
        joined = [add_residual(features, residuals.skips, name) for name, features in skips.items()]
        return from_patches(self._decode(h, image, joined, inputs), self.patch)

    @property
    def decoder_blocks(self) -> int:
        """Number of blocks of the decoder, each of which reads a skip."""
        return sum(step.kind == "block" for step in self._decoder_steps())

    @nn.nowrap
    def places(self) -> Iterator[str]:
        """Names of the modules to whose features residuals can be added, in order of execution.

        They are "stem", "encoder_0_block_0", "down_0" and so on, and "middle" for the middle as a whole.
        """
        yield "stem"
        for i, level in enumerate(self.levels):
            yield from (f"encoder_{i}_block_{j}" for j in range(level.blocks))
            if i + 1 < len(self.levels):
                yield f"down_{i}"
        yield "middle"

    @nn.nowrap
    def stem_input(self, x: Images) -> Grid:
        """The input of the encoder: images, with their coordinates if the network reads these, as patches."""
        x = jnp.concatenate([x, coordinates(x)], axis=-1) if self.coordinates else x
        return to_patches(x, self.patch)

    @nn.nowrap
    def block_inputs(self, embeddings: Embeddings, train: bool) -> list[BlockInputs]:
        """The inputs of the blocks of each level."""
        # Every block would begin with the same SiLU (ADM's emb_layers), so it is applied once.
        vector: Any = embeddings.vector  # `_check` has seen that it is there
        shared = BlockInputs(
            vector=jax.nn.silu(vector),
            tokens=embeddings.tokens,
            image_prompts=embeddings.image_prompts,
            options=self.block,
            train=train,
            remat=self.remat,
            dtype=self.dtype,
        )
        return [shared.replace(dropout=level.dropout if train else 0.0) for level in self.levels]

    @nn.nowrap
    def encode(
        self, x: Grid, inputs: Sequence[BlockInputs], residuals: Mapping[str, Grid]
    ) -> tuple[Grid, dict[str, Grid]]:
        """The encoder and the middle: the middle's features, and the skips for the decoder, in order and by name.

        The modules become children of the module whose method calls this one.
        """
        skips = {}
        for name, h, joined in self._encoder(x, inputs, residuals):
            if joined:
                skips[name] = h
        return add_residual(self.middle(h, inputs[-1]), residuals, "middle"), skips

    @nn.nowrap
    def _skips(
        self, x: Grid, inputs: Sequence[BlockInputs], residuals: Mapping[str, Grid], count: int
    ) -> dict[str, Grid]:
        """The first skips; what comes after them in the encoder is not computed."""
        skips = ((name, h) for name, h, joined in self._encoder(x, inputs, residuals) if joined)
        return dict(itertools.islice(skips, count))

    @nn.nowrap
    def _encoder(
        self, x: Grid, inputs: Sequence[BlockInputs], residuals: Mapping[str, Grid]
    ) -> Iterator[tuple[str, Grid, bool]]:
        """The features of the encoder in order: name, features, and whether they are joined in the decoder."""
        h = Conv(self.stem_width or self.levels[0].width, dtype=self.dtype, name="stem")(x)
        h = add_residual(h, residuals, "stem")
        yield "stem", h, self.resampled_skips
        for i, level in enumerate(self.levels):
            for j in range(level.blocks):
                name = f"encoder_{i}_block_{j}"
                h = apply_block(name, h, inputs[i], level.width, level.attention)
                h = add_residual(h, residuals, name)
                yield name, h, True
            if i + 1 < len(self.levels):
                name = f"down_{i}"
                h = self._resample(name, h, inputs[i], level.width, "down")
                h, x = self._join_input(f"input_{i}", h, x)
                h = add_residual(h, residuals, name)
                yield name, h, self.resampled_skips

    @nn.nowrap
    def _decode(self, h: Grid, image: Grid | None, skips: list[Grid], inputs: Sequence[BlockInputs]) -> Grid:
        """The decoder; with fewer skips than it has blocks, its last blocks, which h and the sum of images enter."""
        steps = list(self._decoder_steps())
        blocks = [number for number, step in enumerate(steps) if step.kind == "block"]
        first = blocks[-len(skips)] if len(skips) < len(blocks) else 0
        for kind, i, j in steps[first:]:
            if kind == "block":
                reuse.keep(self, len(skips), (h, image))
                h = self._decoder_block(i, j, jnp.concatenate([h, skips.pop()], axis=-1), inputs[i])
            elif kind == "head":
                here = self._head(f"_{i}" if i else "", h)
                image = here if image is None else here + resample(image, "up", self.block.resample_taps)
            else:
                h = self._resample(f"up_{i}", h, inputs[i], self.levels[i].width, "up")
        assert image is not None
        return image

    @nn.nowrap
    def _decoder_steps(self) -> Iterator[DecoderStep]:
        """The steps of the decoder in order."""
        for i in reversed(range(len(self.levels))):
            yield from (DecoderStep("block", i, j) for j in range(self._blocks(i)))
            if i == 0 or self.output_path == "skip":
                yield DecoderStep("head", i)
            if i > 0:
                yield DecoderStep("up", i)

    @nn.nowrap
    def _blocks(self, level: int) -> int:
        """Number of decoder blocks of a level."""
        return self.levels[level].blocks + int(self.resampled_skips)

    @nn.nowrap
    def _decoder_block(self, i: int, j: int, h: Grid, inputs: BlockInputs) -> Grid:
        level = self.levels[i]
        attends = self.decoder_attention == "every" or j == self._blocks(i) - 1
        attention = level.attention if attends else None
        return apply_block(f"decoder_{i}_block_{j}", h, inputs, level.width, attention)

    @nn.nowrap
    def _resample(self, name: str, h: Grid, inputs: BlockInputs, width: int, how: Resample) -> Grid:
        """Leave a level, whose width is `width`, for the next coarser ("down") or finer ("up") one."""
        if self.resampling == "residual":
            return apply_block(name, h, inputs, width, resample=how)
        if self.resampling == "plain":
            return resample(h, how)
        if how == "down":
            return Downsample(width, self.pad_end, self.dtype, name=name)(h)
        return Upsample(width, self.dtype, name=name)(h)

    @nn.nowrap
    def _join_input(self, name: str, h: Grid, x: Grid) -> tuple[Grid, Grid]:
        """Add the input path to downsampled features; returns them and the input of the next level."""
        options = h.shape[-1], self.block.resample_taps, self.dtype
        if self.input_path == "residual":
            h = scaled(h + ResidualInput(*options, name=name)(x), self.block.skip_scale)
            return h, h
        if self.input_path == "skip":
            x, features = InputSkip(*options, name=name)(x)
            return h + features, x
        return h, x

    @nn.nowrap
    def _head(self, suffix: str, h: Grid) -> Grid:
        """The image that the features of one level stand for, float32."""
        exact = jnp.promote_types(self.dtype, jnp.float32)
        h = self.block.norm(f"head_norm{suffix}")(h.astype(exact))
        width = self.out_channels * self.patch**2
        return Conv(width, zero=True, dtype=exact.name, name=f"head{suffix}")(h)

    @nn.nowrap
    def _check(self, x: Images, embeddings: Embeddings) -> None:
        """Errors that depend on the images and conditions."""
        check_inputs(len(self.levels), x, embeddings, self.patch)
        if not any(map(reads_image_prompts, (self.middle, *(level.attention for level in self.levels)))):
            check_unread(embeddings, "image_prompts")
        reads = self.middle.reads_tokens or any(level.reads_tokens for level in self.levels)
        if embeddings.tokens is not None and not reads:
            raise UserError(
                "levels: expected cross-attention, because a condition gives tokens, got none. "
                "Fix: give a level an attention with cross_attention=True"
            )
        if embeddings.tokens is None and reads:
            raise UserError(
                "levels: expected a condition that gives tokens for cross_attention, got none. "
                "Fix: add such a condition, or set cross_attention=False"
            )


def coordinates(x: Images) -> Features:
    """Vertical and horizontal position of each pixel of `x`, from -1 to 1 between the image's edges."""
    rows, columns = ((2 * jnp.arange(side, dtype=x.dtype) + 1) / side - 1 for side in x.shape[1:3])
    return jnp.broadcast_to(jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1), (*x.shape[:3], 2))
