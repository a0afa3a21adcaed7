"""The U-Net of a run as diffusers' `UNet2DConditionModel`: its layout, and the `config.json` that diffusers opens."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from flax.traverse_util import flatten_dict

from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.vector import NoiseLevel, VectorMlp
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError
from jaxdiff.interop.stable_diffusion_unet import GUIDANCE, NOISE_TABLE, UnetLayout
from jaxdiff.interop.stable_diffusion_unet_config import unet_layout
from jaxdiff.models.attention import head_count
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.spatial_transformer import SpatialTransformer
from jaxdiff.models.unet import Level, UNet
from jaxdiff.typing import Params

_CONTEXT = re.compile(r"network/.*/key_value/kernel")
"""Keys and values of the tokens."""


def layout_of(
    denoiser: Denoiser, params: Params, noise_table: str = NOISE_TABLE, guidance: str = GUIDANCE
) -> UnetLayout:
    """The layout of a run's U-Net.

    Concatenated vectors are those of SDXL if a size is among them, a `Continuous` with Fourier features.

    Args:
      denoiser: the run's denoiser.
      params: its parameters; only shapes are read.
      noise_table, guidance: as in `entries`.

    Raises:
      UserError: its network, noise module or mapping is of a class that no U-Net of Stable Diffusion has.
    """
    network, conditioner = denoiser.network, denoiser.conditioner
    noise, mapping = conditioner.noise, conditioner.mapping
    if not isinstance(network, UNet):
        raise _unsupported("network", network)
    if type(noise) is not NoiseLevel:
        raise _unsupported("conditioner.noise", noise)
    if mapping is not None and not isinstance(mapping, VectorMlp):
        raise _unsupported("conditioner.mapping", mapping)
    shapes = {path: array.shape for path, array in flatten_dict(params, sep="/").items()}
    contexts = [shape[0] for path, shape in shapes.items() if _CONTEXT.fullmatch(path)]
    if not contexts:
        raise UserError("network: expected cross-attention, got none. Fix: keep the workdir as it is")
    concatenated = (conditioner.conditions[name] for name in conditioner.concatenated)
    sizes = next((part.frequencies for part in concatenated if isinstance(part, Continuous)), None)
    length = shapes.get("conditioner/mapping/dense_0/kernel", (None,))[0]
    return UnetLayout(
        network,
        noise,
        in_channels=shapes["network/stem/kernel"][2],
        context_width=contexts[0],
        mapping=mapping,
        mapped=None if mapping is None else "text_time" if sizes else "projection",
        mapped_width=length,
        size_frequencies=sizes,
        noise_classes=shapes.get(noise_table, (None,))[0],
        guidance_width=shapes.get(f"conditioner/parts_{guidance}/kernel", (None,))[0],
    )


def unet_config(layout: UnetLayout, sample_size: int | list[int] = 64) -> dict[str, Any]:
    """The `config.json` of a layout; the inverse of `unet_layout`.

    Args:
      sample_size: side of the latents, or their height and width.

    Raises:
      UserError: the network has an option that `UNet2DConditionModel` lacks.
    """
    network = layout.network
    if not isinstance(network.middle, ResidualMiddle):
        raise _unsupported("network.middle", network.middle)
    parts = {f"levels[{i}].attention": level.attention for i, level in enumerate(network.levels)}
    parts["middle.attention"] = network.middle.attention
    for field, part in parts.items():
        if not isinstance(part, SpatialTransformer) and (part is not None or field == "middle.attention"):
            raise _unsupported(f"network.{field}", part)
    config = {
        "_class_name": "UNet2DConditionModel", "sample_size": sample_size, "in_channels": layout.in_channels,
        "out_channels": network.out_channels, "block_out_channels": [level.width for level in network.levels],
        "layers_per_block": _shortest([level.blocks for level in network.levels]),
        "dropout": network.levels[0].dropout,
        "down_block_types": [_block_type("Down", level) for level in network.levels],
        "up_block_types": [_block_type("Up", level) for level in reversed(network.levels)],
        "norm_num_groups": network.block.groups, "norm_eps": network.block.eps,
        "resnet_time_scale_shift": "default" if network.block.modulation == "shift" else "scale_shift",
        "downsample_padding": 0 if network.pad_end else 1,
    } | _attention_fields(network.levels, network.middle.attention) | _condition_fields(layout)  # fmt: skip
    if difference := _difference(_canonical(layout), _canonical(unet_layout(config)), ""):
        raise _unsupported(*difference)
    return config


def _attention_fields(levels: Sequence[Level], middle: Any) -> dict[str, Any]:
    """The fields about transformers. Those of a level without one are not read, except that the middle has the numbers
    of the coarsest level."""
    parts: list[Any] = [level.attention or middle for level in levels]
    depths = [part.depth if level.attention else 1 for level, part in zip(levels, parts, strict=True)]
    depths[-1] = parts[-1].depth
    heads = [
        max(1, head_count(level.width, part.heads, part.head_dim))
        for level, part in zip(levels, parts, strict=True)
    ]
    counted = middle.heads is not None and all(part.heads == middle.heads for part in parts)
    return {
        "transformer_layers_per_block": _shortest(depths),
        "attention_head_dim": middle.heads if counted else heads,
        "use_linear_projection": middle.linear_projection,
        "only_cross_attention": _shortest([part.only_cross_attention for part in parts]),
    }


def _condition_fields(layout: UnetLayout) -> dict[str, Any]:
    """The fields about what the conditioner gives."""
    noise, sizes = layout.noise, layout.size_frequencies
    return {
        "freq_shift": int(noise.endpoint), "flip_sin_to_cos": not noise.sine_first, "time_embedding_dim": noise.width,
        "cross_attention_dim": layout.context_width, "time_cond_proj_dim": layout.guidance_width,
        "num_class_embeds": layout.noise_classes,
        "addition_embed_type": "text_time" if layout.mapped == "text_time" else None,
        "class_embed_type": "projection" if layout.mapped == "projection" else None,
        "addition_time_embed_dim": None if sizes is None else 2 * sizes,
        "projection_class_embeddings_input_dim": layout.mapped_width,
    }  # fmt: skip


def _block_type(way: str, level: Level) -> str:
    return f"{'CrossAttn' if level.attention else ''}{way}Block2D"


def _shortest(values: list) -> Any:
    """One value if it is that of every level."""
    return values[0] if len(set(values)) == 1 else values


def _canonical(layout: UnetLayout) -> UnetLayout:
    """The same function in one form: heads counted, and options of training and of precision left out."""
    network, noise = layout.network, layout.noise
    levels = tuple(
        dataclasses.replace(level, attention=_counted(level.attention, level.width))
        for level in network.levels
    )
    middle = network.middle
    if isinstance(middle, ResidualMiddle):
        middle = ResidualMiddle(_counted(middle.attention, levels[-1].width))
    block = network.block
    if all(level.width >= block.groups * block.min_group_size for level in levels):
        block = dataclasses.replace(block, min_group_size=1)
    plain = network.clone(levels=levels, middle=middle, block=block, dtype="float32", remat=False)
    explicit = noise.clone(frequencies=noise.frequencies or noise.width // 8)
    return dataclasses.replace(layout, network=plain, noise=explicit)


def _counted(part: Any, width: int) -> Any:
    if not isinstance(part, SpatialTransformer):
        return part
    return dataclasses.replace(part, heads=head_count(width, part.heads, part.head_dim), head_dim=None)


def _difference(ours: Any, theirs: Any, path: str) -> tuple[str, object] | None:
    """The path and our value of the first field in which two objects differ."""
    if ours == theirs:
        return None
    if type(ours) is type(theirs) and dataclasses.is_dataclass(ours):
        names = [field.name for field in dataclasses.fields(ours) if field.name not in ("parent", "name")]
        pairs = [(getattr(ours, name), getattr(theirs, name), f"{path}.{name}") for name in names]
    elif isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        pairs = [(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(ours, theirs, strict=True))]
    else:
        pairs = []
    found = (_difference(*pair) for pair in pairs)
    return next((each for each in found if each), (path.removeprefix("."), ours))


def _unsupported(field: str, value: object) -> UserError:
    return UserError(
        f"{field}={value}: expected an option that UNet2DConditionModel has, got {value}. "
        "Fix: keep the workdir as it is"
    )
