"""The layout of a U-Net of Stable Diffusion from the shapes of its tensors: single files store no config.

Some options show in no shape. They are taken to be those of the published models:

- Attention heads have 64 channels where a transformer projects by matrices (Stable Diffusion 2, SDXL). There are 8 of
  them where it projects by convolutions (Stable Diffusion 1), and in the x4 upscaler.
- The upscaler, which is known by its table of noise levels, attends only to tokens at all levels but the coarsest.
- In the original naming, mapped vectors are those of SDXL if the finest level has no attention, and otherwise those of
  Stable unCLIP.
"""

import itertools
from collections.abc import Iterable
from typing import Any

from jaxdiff.conditioning.vector import NoiseLevel, VectorMlp
from jaxdiff.errors import UserError, expect
from jaxdiff.interop.mapping import Tensors
from jaxdiff.interop.stable_diffusion_unet import STEMS, Naming, UnetLayout, naming_of
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.spatial_transformer import SpatialTransformer
from jaxdiff.models.unet import Level, UNet

SIZE_FREQUENCIES = 128
"""Sine and cosine pairs of each of SDXL's sizes."""

NAMES: dict[Naming, dict[str, str]] = {
    "diffusers": {
        "time": "time_embedding.linear_1.weight", "head": "conv_out.weight", "middle": "mid_block.attentions.0",
        "table": "class_embedding.weight", "guidance": "time_embedding.cond_proj.weight",
        "text_time": "add_embedding.linear_1.weight", "projection": "class_embedding.linear_1.weight",
    },
    "original": {
        "time": "time_embed.0.weight", "head": "out.2.weight", "middle": "middle_block.1", "table": "label_emb.weight",
        "guidance": "", "text_time": "label_emb.0.0.weight", "projection": "label_emb.0.0.weight",
    },
}  # fmt: skip
"""Names outside the levels: of weights, and of the attention in the middle. There is no original guided U-Net."""

Block = tuple[str, str]
"""The weight of a residual block's first convolution, and the prefix of the attention that may follow the block."""


def detect_layout(tensors: Tensors, groups: int = 32) -> UnetLayout:
    """The layout of a U-Net of Stable Diffusion, in either naming.

    Args:
      tensors: arrays by name, without prefix; only shapes are read.
      groups: number of groups in all group norms.

    Raises:
      UserError: the tensors are not those of such a U-Net. Not everything is looked at here: `to_params` compares
        every name and shape with those of the layout's network.
    """
    naming = naming_of(tensors)
    names, blocks = NAMES[naming], _blocks(tensors, naming)
    network = _network(tensors, blocks, names, groups)
    width, fourier = _shape(tensors, names["time"])
    return UnetLayout(
        network,
        NoiseLevel(width, frequencies=fourier // 2),
        in_channels=_shape(tensors, STEMS[naming])[1],
        context_width=_context_width(tensors, [*(level[0][1] for level in blocks), names["middle"]]),
        noise_classes=_shape(tensors, names["table"])[0] if names["table"] in tensors else None,
        guidance_width=_shape(tensors, names["guidance"])[1] if names["guidance"] in tensors else None,
        **_mapping(tensors, names, network.levels[0].reads_tokens),
    )


def _network(tensors: Tensors, blocks: list[list[Block]], names: dict[str, str], groups: int) -> UNet:
    upscaler = names["table"] in tensors
    levels = []
    for level in blocks:
        first, attention = level[0]
        width = _shape(tensors, first)[0]
        fits = width % groups == 0
        expect(fits, "groups", groups, f"a divisor of the width {width}", "give the number of groups")
        part = _part(tensors, attention, groups, upscaler, upscaler and level is not blocks[-1])
        levels.append(Level(width, len(level), part))
    return UNet(
        tuple(levels),
        out_channels=_shape(tensors, names["head"])[0],
        block=BlockOptions(groups, min_group_size=1, modulation="shift"),
        middle=ResidualMiddle(_part(tensors, names["middle"], groups, upscaler)),
        resampling="conv",
    )


def _blocks(tensors: Tensors, naming: Naming) -> list[list[Block]]:
    """The encoder's residual blocks of each level."""
    levels = _folder_blocks(tensors) if naming == "diffusers" else _original_blocks(tensors)
    if not levels or not all(levels):
        counts = [len(level) for level in levels]
        raise UserError(
            f"--from: expected residual blocks at every level of a U-Net, got {counts}. "
            "Fix: name a file that contains the whole U-Net of Stable Diffusion"
        )
    return levels


def _folder_blocks(tensors: Tensors) -> list[list[Block]]:
    levels = (
        [
            (f"down_blocks.{i}.resnets.{j}.conv1.weight", f"down_blocks.{i}.attentions.{j}")
            for j in _numbers(tensors, f"down_blocks.{i}.resnets.{{}}.conv1.weight")
        ]
        for i in itertools.count()
    )
    return list(itertools.takewhile(bool, levels))


def _original_blocks(tensors: Tensors) -> list[list[Block]]:
    """One list numbers all blocks. A block that changes the resolution ends a level."""
    levels: list[list[Block]] = [[]]
    for i in itertools.count(1):  # block 0 is the first convolution
        first = f"input_blocks.{i}.0.in_layers.2.weight"
        if f"input_blocks.{i}.0.op.weight" in tensors:
            levels.append([])
        elif first in tensors:
            levels[-1].append((first, f"input_blocks.{i}.1"))
        else:
            break
    return levels


def _part(
    tensors: Tensors, prefix: str, groups: int, upscaler: bool, only_cross_attention: bool = False
) -> SpatialTransformer | None:
    """The transformer under a prefix, if there is one."""
    depth = len(_numbers(tensors, f"{prefix}.transformer_blocks.{{}}.attn1.to_q.weight"))
    if depth == 0:
        return None
    linear = len(_shape(tensors, f"{prefix}.proj_in.weight")) == 2
    counted = upscaler or not linear
    return SpatialTransformer(
        depth=depth,
        heads=8 if counted else None,
        head_dim=None if counted else 64,
        linear_projection=linear,
        groups=groups,
        only_cross_attention=only_cross_attention,
    )


def _context_width(tensors: Tensors, attentions: Iterable[str]) -> int:
    names = (f"{prefix}.transformer_blocks.0.attn2.to_k.weight" for prefix in attentions)
    name = next((name for name in names if name in tensors), None)
    if name is None:
        raise UserError(
            "--from: expected a U-Net that attends to tokens, got one without. "
            "Fix: name a file that contains the U-Net of Stable Diffusion"
        )
    return _shape(tensors, name)[1]


def _mapping(tensors: Tensors, names: dict[str, str], attends_at_finest: bool) -> dict[str, Any]:
    """The fields of a layout about mapped vectors."""
    kinds = ("projection", "text_time") if attends_at_finest else ("text_time", "projection")
    kind = next((kind for kind in kinds if names[kind] in tensors), None)
    if kind is None:
        return {}
    width, length = _shape(tensors, names[kind])
    sizes = SIZE_FREQUENCIES if kind == "text_time" else None
    return {"mapping": VectorMlp(width), "mapped": kind, "mapped_width": length, "size_frequencies": sizes}


def _numbers(tensors: Tensors, pattern: str) -> list[int]:
    """0, 1, ... as long as there is a tensor with that number in its name."""
    return list(itertools.takewhile(lambda i: pattern.format(i) in tensors, itertools.count()))


def _shape(tensors: Tensors, name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise UserError(
            f"--from: expected the tensor {name} of a U-Net, got none. "
            "Fix: name a file that contains the whole U-Net of Stable Diffusion"
        )
    return tensors[name].shape
