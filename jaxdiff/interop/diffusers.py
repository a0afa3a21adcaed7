"""diffusers' `UNet2DModel`: its `config.json` to a denoiser and back, and its parameter names."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError, expect
from jaxdiff.interop import folders, schedulers, spatial_transformer
from jaxdiff.interop.files import Unreadable, reading
from jaxdiff.interop.mapping import SAME, Entry, conv, dense, from_heads, norm, separate_heads
from jaxdiff.interop.structure import modules
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.joint_attention import JointAttention
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.spatial_transformer import SpatialTransformer
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.prediction import LearnedVariance

# For each block type: whether it attends, and whether it resamples in a residual block. None: decided by the config's
# downsample_type or upsample_type.
DOWN: dict[str, tuple[bool, bool | None]] = {
    "DownBlock2D": (False, False),
    "ResnetDownsampleBlock2D": (False, True),
    "AttnDownBlock2D": (True, None),
}
UP: dict[str, tuple[bool, bool | None]] = {
    "UpBlock2D": (False, False),
    "ResnetUpsampleBlock2D": (False, True),
    "AttnUpBlock2D": (True, None),
}
# Defaults of the fields of `config.json` that matter here.
DEFAULTS: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "center_input_sample": False, "time_embedding_type": "positional",
    "time_embedding_dim": None, "freq_shift": 0, "flip_sin_to_cos": True, "mid_block_type": "UNetMidBlock2D",
    "block_out_channels": [224, 448, 672, 896], "layers_per_block": 2, "mid_block_scale_factor": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "downsample_padding": 1, "downsample_type": "conv", "upsample_type": "conv", "dropout": 0.0, "act_fn": "silu",
    "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None, "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default", "add_attention": True, "class_embed_type": None, "num_class_embeds": None,
}  # fmt: skip
FIXED = {
    "center_input_sample": (False,), "time_embedding_type": ("positional",), "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2D",), "act_fn": ("silu", "swish"), "class_embed_type": (None,),
    "resnet_time_scale_shift": ("default", "scale_shift"), "freq_shift": (0, 1), "downsample_padding": (0, 1),
}  # fmt: skip
_FIXED_FIELDS = (
    "patch",
    "coordinates",
    "stem_width",
    "resampled_skips",
    "decoder_attention",
    "input_path",
    "output_path",
)


def denoiser(model: Mapping[str, Any], scheduler: Mapping[str, Any] | None = None) -> Denoiser:
    """Build the denoiser that a folder describes.

    Args:
      model: `config.json` of a `UNet2DModel`.
      scheduler: `scheduler_config.json`; DDPM's linear betas and noise prediction if None.

    Raises:
      UserError: the model has an option that `UNet` lacks.
    """
    given = known_fields(model)
    noise, parts = noise_level(given), {}
    if given["num_class_embeds"] is not None:
        classes = given["num_class_embeds"]
        parts = {"label": ClassLabel(classes, noise.width, drop_rate=0.0, null="zero")}
    settings, learned = scheduler or {}, given["out_channels"] == 2 * given["in_channels"]
    return Denoiser(
        network(given),
        Conditioner(noise, parts),
        schedulers.process(settings),
        schedulers.parameterization(settings, learned_variance=learned),
    )


def known_fields(model: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `config.json` with defaults.

    Raises:
      UserError: one has a value that `UNet` lacks.
    """
    given = DEFAULTS | {key: value for key, value in model.items() if key in DEFAULTS}
    for field, known in FIXED.items():
        expect(given[field] in known, field, given[field], " or ".join(map(repr, known)), "use such a model")
    return given


def noise_level(given: Mapping[str, Any]) -> NoiseLevel:
    """The module of the noise level, from `known_fields`."""
    width = given["block_out_channels"][0]
    return NoiseLevel(
        given["time_embedding_dim"] or 4 * width,
        frequencies=width // 2,
        endpoint=given["freq_shift"] == 1,
        sine_first=not given["flip_sin_to_cos"],
    )


def read_settings(folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read `config.json` of the model in a folder, and `scheduler_config.json` of its pipeline ({} without one).

    Raises:
      UserError: there is no model in the folder.
    """
    root = pathlib.Path(folder)
    with reading(root):
        found = folders.settings(folders.model_folder(root, None), root)
        if (
            found.get("config", {}).get("_class_name", "UNet2DModel") != "UNet2DModel"
            or "config" not in found
        ):
            raise Unreadable(
                "expected a UNet2DModel, got none in it", "name the folder of one, with its config.json"
            )
    return found["config"], found.get("scheduler", {})


def model_config(denoiser: Denoiser, image_size: int) -> dict[str, Any]:
    """The `config.json` of the same network; the inverse of `denoiser`.

    Raises:
      UserError: the network has an option that `UNet2DModel` lacks.
    """
    conditioner = denoiser.conditioner
    if not isinstance(conditioner, Conditioner):
        raise _unsupported("conditioner", type(conditioner).__name__)
    label = conditioner.conditions.get("label")
    for name, part in conditioner.conditions.items():
        if part is not label or type(part) is not ClassLabel or part.before_mapping or part.null != "zero":
            raise _unsupported(f"conditioner.conditions.{name}", type(part).__name__)
    learned = isinstance(denoiser.parameterization, LearnedVariance)
    own = network_of(denoiser)
    channels = own.out_channels // (2 if learned else 1)
    config = network_config(own, conditioner.noise, channels, image_size)
    return config | {"num_class_embeds": None if label is None else label.num_classes}


def network_config(network: UNet, noise: Any, in_channels: int, image_size: int) -> dict[str, Any]:
    """The `config.json` of a network and its module of the noise level, without classes.

    Raises:
      UserError: one of them has an option that `UNet2DModel` lacks.
    """
    _check_known(network, noise)
    levels, residual = network.levels, network.resampling == "residual"
    options, attention = network.block, _attention_of(network)
    kind = "resnet" if residual else "conv"
    return {
        "_class_name": "UNet2DModel", "sample_size": image_size, "out_channels": network.out_channels,
        "in_channels": in_channels,
        "time_embedding_dim": noise.width, "freq_shift": int(noise.endpoint), "flip_sin_to_cos": not noise.sine_first,
        "block_out_channels": [level.width for level in levels], "layers_per_block": levels[0].blocks,
        "down_block_types": [_block_type("Down", level, residual) for level in levels],
        "up_block_types": [_block_type("Up", level, residual) for level in reversed(levels)],
        "downsample_padding": 0 if network.pad_end else 1, "downsample_type": kind, "upsample_type": kind,
        "dropout": levels[0].dropout, "norm_num_groups": options.groups,
        "norm_eps": options.eps, "attn_norm_num_groups": options.groups,
        "attention_head_dim": attention.head_dim, "add_attention": network.middle != ResidualMiddle(None),
        "resnet_time_scale_shift": "scale_shift" if options.modulation == "scale_shift" else "default",
    }  # fmt: skip


def network_of(denoiser: Denoiser) -> UNet:
    """The denoiser's network, which must be a `UNet`."""
    if not isinstance(denoiser.network, UNet):
        raise _unsupported("network", type(denoiser.network).__name__)
    return denoiser.network


def entries(network: UNet) -> Iterator[Entry]:
    """The mapping for a denoiser with this network."""
    yield from dense("conditioner/noise/dense_0", "time_embedding.linear_1")
    yield from dense("conditioner/noise/dense_1", "time_embedding.linear_2")
    yield Entry("conditioner/parts_label/table", ("class_embedding.weight",), SAME)
    last = len(network.levels) - 1
    for module in modules(network):
        ours, block, i = f"network/{module.name}", f"down_blocks.{module.level}", module.index
        if module.kind in ("decoder", "up"):
            block = f"up_blocks.{last - module.level}"
        if module.kind == "stem":
            yield from conv(ours, "conv_in")
        elif module.kind == "head":
            yield from norm("network/head_norm", "conv_norm_out")
            yield from conv("network/head", "conv_out")
        elif module.kind in ("down", "up"):
            theirs = f"{block}.{module.kind}samplers.0"
            yield from conv(f"{ours}/conv", f"{theirs}.conv")
            yield from _residual(ours, theirs)
        else:
            block = "mid_block" if module.kind == "middle" else block
            yield from _residual(ours, f"{block}.resnets.{i}")
            theirs = f"{block}.attentions.{i}"
            if isinstance(module.attention, SpatialTransformer):
                yield from spatial_transformer.entries(f"{ours}/transformer", theirs, module.attention)
            elif isinstance(module.attention, JointAttention):
                yield from _joint_attention(f"{ours}/joint_attention", theirs)
            else:
                yield from _attention(f"{ours}/self_attention", theirs)


def _residual(ours: str, theirs: str) -> Iterator[Entry]:
    ours = f"{ours}/residual"
    for name, peer in (("norm_0", "norm1"), ("norm_1", "norm2")):
        yield from norm(f"{ours}/{name}", f"{theirs}.{peer}")
    for name, peer in (("conv_0", "conv1"), ("conv_1", "conv2"), ("skip", "conv_shortcut")):
        yield from conv(f"{ours}/{name}", f"{theirs}.{peer}")
    yield from dense(f"{ours}/modulation", f"{theirs}.time_emb_proj")


def _joint_attention(ours: str, theirs: str) -> Iterator[Entry]:
    yield from _attention(ours, theirs)
    for kind, name in (("kernel", "weight"), ("bias", "bias")):
        keys = tuple(f"{theirs}.add_{which}_proj.{name}" for which in "kv")
        yield Entry(f"{ours}/key_value/{kind}", keys, separate_heads())


def _attention(ours: str, theirs: str) -> Iterator[Entry]:
    yield from norm(f"{ours}/norm", f"{theirs}.group_norm")
    for kind, name in (("kernel", "weight"), ("bias", "bias")):
        keys = tuple(f"{theirs}.to_{which}.{name}" for which in "qkv")
        yield Entry(f"{ours}/query_key_value/{kind}", keys, separate_heads())
    yield Entry(f"{ours}/out/kernel", (f"{theirs}.to_out.0.weight",), from_heads())
    yield Entry(f"{ours}/out/bias", (f"{theirs}.to_out.0.bias",), SAME)


def network(given: Mapping[str, Any]) -> UNet:
    """The network, from `known_fields`."""
    down, up = given["down_block_types"], given["up_block_types"]
    for field, known in (("down_block_types", DOWN), ("up_block_types", UP)):
        for name in given[field]:
            expect(name in known, field, name, f"one of {', '.join(known)}", "use a model with these blocks")
    attends = [DOWN[name][0] for name in down]
    expect(
        attends == [UP[name][0] for name in reversed(up)],
        "up_block_types",
        up,
        "attention at the levels of down_block_types",
        "use a model whose decoder attends where its encoder does",
    )
    # The last block of the encoder and of the decoder does not resample.
    kinds = {_resamples(DOWN[name][1], given["downsample_type"]) for name in down[:-1]}
    kinds |= {_resamples(UP[name][1], given["upsample_type"]) for name in up[:-1]}
    expect(len(kinds) <= 1, "down_block_types", down, "one kind of resampling everywhere", "use such a model")
    # By default, a model with scale and shift has no norm before the attention of its middle.
    groups, unnormed = given["attn_norm_num_groups"], given["resnet_time_scale_shift"] == "scale_shift"
    known = (
        (given["norm_num_groups"],)
        if unnormed and given["add_attention"]
        else (None, given["norm_num_groups"])
    )
    expect(
        groups in known,
        "attn_norm_num_groups",
        groups,
        f"{known[-1]}, as in all other norms",
        "use such a model",
    )
    head_dim = given["attention_head_dim"]
    attention = PixelAttention(head_dim=head_dim, heads=None if head_dim else 1)
    levels = tuple(
        Level(width, given["layers_per_block"], attention if attending else None, float(given["dropout"]))
        for width, attending in zip(given["block_out_channels"], attends, strict=True)
    )
    options = BlockOptions(
        groups=given["norm_num_groups"],
        min_group_size=1,
        eps=given["norm_eps"],
        modulation="shift" if given["resnet_time_scale_shift"] == "default" else "scale_shift",
    )
    return UNet(
        levels,
        given["out_channels"],
        block=options,
        middle=ResidualMiddle(attention if given["add_attention"] else None),
        resampling="residual" if True in kinds else "conv",
        pad_end=given["downsample_padding"] == 0,
    )


def _resamples(own: bool | None, kind: str | None) -> bool:
    return kind == "resnet" if own is None else own


def _block_type(way: str, level: Level, residual: bool) -> str:
    if level.attention is not None:
        return f"Attn{way}Block2D"
    return f"Resnet{way}sampleBlock2D" if residual else f"{way}Block2D"


def _check_known(network: UNet, noise: Any) -> None:
    """Raise a `UserError` about an option that `UNet2DModel` lacks."""
    for part, cls, path, names in (
        (network, UNet, "network", _FIXED_FIELDS),
        (network.block, BlockOptions, "network.block", ("skip_scale", "resample_taps", "project_resampled")),
    ):
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        for name in names:
            if getattr(part, name) != defaults[name]:
                raise _unsupported(f"{path}.{name}", getattr(part, name))
    if network.resampling == "plain":
        raise _unsupported("network.resampling", network.resampling)
    if not isinstance(network.middle, ResidualMiddle):
        raise _unsupported("network.middle", type(network.middle).__name__)
    levels, options = network.levels, network.block
    for i, level in enumerate(levels):
        for name in ("blocks", "dropout"):
            if getattr(level, name) != getattr(levels[0], name):
                raise _unsupported(f"network.levels[{i}].{name}", getattr(level, name))
        # One group more or less would be another network.
        if level.width % options.groups or level.width < options.groups * options.min_group_size:
            raise _unsupported("network.block.min_group_size", options.min_group_size)
    attention = _attention_of(network)
    if attention.heads not in (None, 1):
        raise _unsupported("attention.heads", attention.heads)
    if type(noise) is not NoiseLevel or noise.random_scale is not None or noise.max_period != 10000.0:
        raise _unsupported("conditioner.noise", type(noise).__name__)
    if (noise.frequencies or noise.width // 8) != levels[0].width // 2:
        raise _unsupported("conditioner.noise.frequencies", noise.frequencies)


def _attention_of(network: UNet) -> PixelAttention:
    """The attention of all levels and of the middle; `PixelAttention()` if there is none anywhere."""
    found = {f"network.levels[{i}].attention": level.attention for i, level in enumerate(network.levels)}
    middle = network.middle
    found["network.middle.attention"] = middle.attention if isinstance(middle, ResidualMiddle) else None
    given = {field: part for field, part in found.items() if part is not None}
    first = next(iter(given.values()), PixelAttention())
    for field, part in given.items():
        if not isinstance(part, PixelAttention) or part.cross_attention or part != first:
            raise _unsupported(field, part)
    assert isinstance(first, PixelAttention)
    return first


def _unsupported(field: str, value: object) -> UserError:
    return UserError(
        f"{field}={value}: expected an option that UNet2DModel has, got {value}. Fix: keep the workdir as it is"
    )
