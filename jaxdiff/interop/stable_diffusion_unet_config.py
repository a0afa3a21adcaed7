"""diffusers' `config.json` of a `UNet2DConditionModel`: to the layout of a U-Net of Stable Diffusion."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdiff.conditioning.vector import NoiseLevel, VectorMlp
from jaxdiff.errors import expect
from jaxdiff.interop.config_fields import PAIR, check, optional
from jaxdiff.interop.stable_diffusion_unet import UnetLayout
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.spatial_transformer import SpatialTransformer
from jaxdiff.models.unet import Level, UNet

# Defaults of the fields of `config.json` that matter here.
DEFAULTS: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "center_input_sample": False,
    "flip_sin_to_cos": True, "freq_shift": 0, "mid_block_type": "UNetMidBlock2DCrossAttn",
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "only_cross_attention": False,
    "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "downsample_padding": 1,
    "mid_block_scale_factor": 1, "dropout": 0.0, "act_fn": "silu", "norm_num_groups": 32, "norm_eps": 1e-5,
    "cross_attention_dim": 1280, "transformer_layers_per_block": 1, "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None, "encoder_hid_dim_type": None, "attention_head_dim": 8, "num_attention_heads": None,
    "dual_cross_attention": False, "use_linear_projection": False, "class_embed_type": None,
    "addition_embed_type": None, "addition_time_embed_dim": None, "num_class_embeds": None,
    "resnet_time_scale_shift": "default", "resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional", "time_embedding_dim": None, "time_embedding_act_fn": None,
    "timestep_post_act": None, "time_cond_proj_dim": None, "conv_in_kernel": 3, "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None, "attention_type": "default", "class_embeddings_concat": False,
    "cross_attention_norm": None,
}  # fmt: skip
# A number for the whole network, or one for each level.
BY_LEVEL = (
    "block_out_channels", "layers_per_block", "transformer_layers_per_block", "attention_head_dim",
    "cross_attention_dim", "only_cross_attention",
)  # fmt: skip
FIXED: dict[str, tuple] = {
    "_class_name": ("UNet2DConditionModel",), "center_input_sample": (False,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",), "downsample_padding": (0, 1), "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"), "encoder_hid_dim": (None,), "encoder_hid_dim_type": (None,), "freq_shift": (0, 1),
    "num_attention_heads": (None,), "dual_cross_attention": (False,), "class_embed_type": (None, "projection"),
    "addition_embed_type": (None, "text_time"), "resnet_time_scale_shift": ("default", "scale_shift"),
    "resnet_skip_time_act": (False, None), "resnet_out_scale_factor": (1, None), "time_embedding_type": ("positional",),
    "time_embedding_act_fn": (None,), "timestep_post_act": (None,), "conv_in_kernel": (3,), "conv_out_kernel": (3,),
    "use_linear_projection": (True, False), "flip_sin_to_cos": (True, False),
    "attention_type": ("default",), "class_embeddings_concat": (False,), "cross_attention_norm": (None,),
}  # fmt: skip


def unet_layout(config: Mapping[str, Any]) -> UnetLayout:
    """The layout that a `config.json` describes.

    Fields that change no number are not read, such as `upcast_attention`: our softmax is float32.

    Raises:
      UserError: it is another class, or has an option that ours lacks.
    """
    given = _checked(config)
    width = given["block_out_channels"][0]
    noise = NoiseLevel(
        given["time_embedding_dim"] or 4 * width,
        frequencies=width // 2,
        endpoint=given["freq_shift"] == 1,
        sine_first=not given["flip_sin_to_cos"],
    )
    return UnetLayout(
        _network(given),
        noise,
        in_channels=given["in_channels"],
        context_width=given["cross_attention_dim"][0],
        noise_classes=None if given["class_embed_type"] else given["num_class_embeds"],
        guidance_width=given["time_cond_proj_dim"],
        **_mapping(given, noise),
    )


def latent_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the latents that a network was trained with; None where its `config.json` does not say it.

    Raises:
      UserError: `sample_size` is neither one number nor two.
    """
    check(config, {"sample_size": optional(PAIR)}, "config.json of the U-Net")
    size = config.get("sample_size")
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _network(given: Mapping[str, Any]) -> UNet:
    attends = [name.startswith("CrossAttn") for name in given["down_block_types"]]
    blocks, dropout = given["layers_per_block"], float(given["dropout"])
    levels = tuple(
        Level(width, blocks[i], _part(given, i) if attends[i] else None, dropout)
        for i, width in enumerate(given["block_out_channels"])
    )
    # Only the blocks of levels can be without self-attention.
    middle = dataclasses.replace(_part(given, len(levels) - 1), only_cross_attention=False)
    modulation = "shift" if given["resnet_time_scale_shift"] == "default" else "scale_shift"
    return UNet(
        levels,
        given["out_channels"],
        block=BlockOptions(given["norm_num_groups"], 1, float(given["norm_eps"]), modulation),
        middle=ResidualMiddle(middle),
        resampling="conv",
        pad_end=given["downsample_padding"] == 0,
    )


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `config.json` with defaults and with a list for each level, checked to be a network of ours."""
    given = DEFAULTS | {name: value for name, value in config.items() if name in DEFAULTS}
    for field, known in FIXED.items():
        expect(given[field] in known, field, given[field], " or ".join(map(repr, known)), "use such a model")
    widths = given["block_out_channels"]
    several = isinstance(widths, Sequence) and not isinstance(widths, str) and len(widths) > 0
    expect(several, "block_out_channels", widths, "a list of widths", "use such a model")
    by_level = {field: _by_level(given, field, len(widths)) for field in BY_LEVEL}
    given |= by_level | {"attention_head_dim": given["attention_head_dim"]}
    for field in ("in_channels", "out_channels", "norm_num_groups"):
        _expect_counts(field, given[field], [given[field]])
    for field in ("time_embedding_dim", "num_class_embeds", "time_cond_proj_dim"):
        _expect_counts(field, given[field], [] if given[field] is None else [given[field]])
    _check_blocks(given)
    _check_levels(given)
    return given


def _by_level(given: Mapping[str, Any], field: str, levels: int) -> list:
    """The value of a field for each level."""
    value = given[field]
    values = list(value) if isinstance(value, list | tuple) else [value] * levels
    expect(len(values) == levels, field, value, f"{levels} values, one for each level", "use such a model")
    if field == "only_cross_attention":
        known = all(isinstance(each, bool) for each in values)
        expect(known, field, value, "true or false for each level", "use such a model")
    elif field == "transformer_layers_per_block":  # 0 at a level without attention, such as SDXL's finest
        _expect_counts(field, value, values, 0)
    else:
        _expect_counts(field, value, values)
    return values


def _expect_counts(field: str, value: object, counts: Sequence[object], least: int = 1) -> None:
    """Raise a `UserError` about `field` unless all of `counts` are integers that are not below `least`."""
    known = all(type(count) is int and count >= least for count in counts)
    expect(known, field, value, f"whole numbers from {least}", "use such a model")


def _check_blocks(given: Mapping[str, Any]) -> None:
    """Raise a `UserError` about types of blocks that are not those of Stable Diffusion."""
    levels = len(given["block_out_channels"])
    for side in ("Down", "Up"):
        field, known = f"{side.lower()}_block_types", (f"{side}Block2D", f"CrossAttn{side}Block2D")
        blocks = given[field]
        fits = isinstance(blocks, list | tuple) and len(blocks) == levels
        expect(fits, field, blocks, f"{levels} names, one for each level", "use such a model")
        for name in blocks:
            expect(name in known, field, name, " or ".join(known), "use a model with these blocks")
    down, up = given["down_block_types"], given["up_block_types"]
    same = [name.replace("Down", "Up") for name in reversed(down)] == list(up)
    expect(same, "up_block_types", up, "attention at the levels of down_block_types", "use such a model")


def _check_levels(given: Mapping[str, Any]) -> None:
    """Raise a `UserError` about numbers that do not fit each other."""
    widths, groups = given["block_out_channels"], given["norm_num_groups"]
    fits = not any(width % groups for width in widths)
    expect(fits, "norm_num_groups", groups, f"a divisor of the widths {widths}", "use such a model")
    heads = _by_level(given, "attention_head_dim", len(widths))
    attending = [i for i, name in enumerate(given["down_block_types"]) if name.startswith("CrossAttn")]
    for i in {*attending, len(widths) - 1}:  # the middle has the heads of the coarsest level
        fits, expected = widths[i] % heads[i] == 0, f"divisors of the widths {widths}"
        expect(fits, "attention_head_dim", given["attention_head_dim"], expected, "use such a model")
    contexts, field = given["cross_attention_dim"], "cross_attention_dim"
    expect(len(set(contexts)) == 1, field, contexts, "one number for all levels", "use such a model")
    depths = given["transformer_layers_per_block"]
    field = "reverse_transformer_layers_per_block"
    back = given[field]
    same = back is None or (isinstance(back, list | tuple) and list(back) == depths[::-1])
    expect(same, field, back, f"{depths[::-1]}, the encoder's backwards", "use such a model")
    eps, dropout = given["norm_eps"], given["dropout"]
    expect(_number(eps) and eps > 0, "norm_eps", eps, "a number > 0", "use such a model")
    expect(
        _number(dropout) and 0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)", "use such a model"
    )


def _part(given: Mapping[str, Any], level: int) -> SpatialTransformer:
    """The transformer of a level. `attention_head_dim` is the number of heads, whatever its name says."""
    heads = given["attention_head_dim"]
    counted = isinstance(heads, int)
    return SpatialTransformer(
        depth=given["transformer_layers_per_block"][level],
        heads=heads if counted else None,
        head_dim=None if counted else given["block_out_channels"][level] // heads[level],
        linear_projection=given["use_linear_projection"],
        groups=given["norm_num_groups"],
        only_cross_attention=given["only_cross_attention"][level],
    )


def _mapping(given: Mapping[str, Any], noise: NoiseLevel) -> dict[str, Any]:
    """The fields of a layout about mapped vectors."""
    projected, sizes = given["class_embed_type"], given["addition_time_embed_dim"]
    if given["addition_embed_type"] is None:
        if projected is None:
            return {}
        sizes = None
    else:
        expect(projected is None, "class_embed_type", projected, "None beside text_time", "use such a model")
        even = type(sizes) is int and sizes > 0 and sizes % 2 == 0
        expect(even, "addition_time_embed_dim", sizes, "an even number > 0", "use such a model")
        # Sizes are embedded as the noise level is, and the condition for them has cosines first.
        shift, cosines = given["freq_shift"], given["flip_sin_to_cos"]
        expect(shift == 0, "freq_shift", shift, "0 with text_time", "use such a model")
        expect(cosines, "flip_sin_to_cos", cosines, "true with text_time", "use such a model")
    width, field = noise.width, "projection_class_embeddings_input_dim"
    _expect_counts(field, given[field], [given[field]])
    return {
        "mapping": VectorMlp(width),
        "mapped": "text_time" if sizes else "projection",
        "mapped_width": given[field],
        "size_frequencies": sizes // 2 if sizes else None,
    }


def _number(value: object) -> bool:
    return type(value) in (int, float)
