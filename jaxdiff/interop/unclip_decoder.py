"""The decoder of a published unCLIP in diffusers: its U-Net, and `UnCLIPTextProjModel`, which embeds conditions.

>>> layout = decoder_layout(config, text_proj_config)
>>> params = to_params(decoder_entries(layout), tensors, shapes_of(denoiser))

The mappings are those of a denoiser with the conditions ``image``, an `EmbeddedVector`, and ``text``, a `Text` with a
`DecoderText`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxdiff.conditioning.conditioner import parameters_of
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.errors import UserError, expect
from jaxdiff.interop import diffusers
from jaxdiff.interop.config_fields import COUNT, COUNTS, NUMBER, POSITIVE, TEXTS, check, optional
from jaxdiff.interop.mapping import Entry, Layout, dense, norm
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.joint_attention import JointAttention
from jaxdiff.models.unet import Level, UNet

IMAGE, TEXT = (f"conditioner/{parameters_of(name)}" for name in ("image", "text"))

DEFAULTS: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "center_input_sample": False,
    "flip_sin_to_cos": True, "freq_shift": 0, "mid_block_type": "UNetMidBlock2DCrossAttn",
    "down_block_types": (), "up_block_types": (), "only_cross_attention": False,
    "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "mid_block_scale_factor": 1, "dropout": 0.0,
    "act_fn": "silu", "norm_num_groups": 32, "norm_eps": 1e-5, "cross_attention_dim": 1280,
    "encoder_hid_dim": None, "encoder_hid_dim_type": None, "attention_head_dim": 8, "num_attention_heads": None,
    "class_embed_type": None, "addition_embed_type": None, "num_class_embeds": None,
    "resnet_time_scale_shift": "default", "resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional", "time_embedding_dim": None, "time_embedding_act_fn": None,
    "timestep_post_act": None, "time_cond_proj_dim": None, "conv_in_kernel": 3, "conv_out_kernel": 3,
    "class_embeddings_concat": False, "mid_block_only_cross_attention": None, "cross_attention_norm": None,
}  # fmt: skip
"""Of the fields of `config.json` that matter here."""

KINDS = {
    **dict.fromkeys(
        ("in_channels", "out_channels", "layers_per_block", "norm_num_groups", "cross_attention_dim",
         "attention_head_dim"), COUNT,
    ),
    "block_out_channels": COUNTS, "time_embedding_dim": optional(COUNT), "norm_eps": POSITIVE, "dropout": NUMBER,
    "down_block_types": TEXTS, "up_block_types": TEXTS,
}  # fmt: skip
FIXED: dict[str, tuple] = {
    "_class_name": ("UNet2DConditionModel",), "center_input_sample": (False,), "flip_sin_to_cos": (True, False),
    "freq_shift": (0, 1), "mid_block_type": ("UNetMidBlock2DSimpleCrossAttn",), "only_cross_attention": (False,),
    "mid_block_scale_factor": (1,), "dropout": (0,), "act_fn": ("silu", "swish"), "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,), "num_attention_heads": (None,), "class_embed_type": ("identity",),
    "addition_embed_type": (None,), "num_class_embeds": (None,), "resnet_time_scale_shift": ("default", "scale_shift"),
    "resnet_skip_time_act": (False, None), "resnet_out_scale_factor": (1, None), "time_embedding_type": ("positional",),
    "time_embedding_act_fn": (None,), "timestep_post_act": (None,), "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,), "conv_out_kernel": (3,), "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False), "cross_attention_norm": (None,),
}  # fmt: skip
"""Fields of which ours has these values only."""

BLOCKS = {"Down": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
          "Up": ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D")}  # fmt: skip
"""The types of blocks without and with attention."""

PROJECTION = {"clip_extra_context_tokens": 4, "clip_embeddings_dim": 768}
"""Defaults of `UnCLIPTextProjModel`."""


@dataclasses.dataclass(frozen=True)
class DecoderLayout:
    """A published decoder.

    Attributes:
      network: the U-Net.
      noise: the conditioner's module of the noise level.
      in_channels: channels of the images; the output has as many again for a variance, if it is learned.
      dim: length of CLIP's embeddings of images and texts, and channels of the states of a text.
      context_width: channels of the tokens.
      tokens: tokens of the image embedding.
    """

    network: UNet
    noise: NoiseLevel
    in_channels: int
    dim: int
    context_width: int
    tokens: int


def decoder_layout(config: Mapping[str, Any], projection: Mapping[str, Any]) -> DecoderLayout:
    """The layout that two `config.json` describe, those of the U-Net and of `UnCLIPTextProjModel`.

    Raises:
      UserError: one is of another class, has an option that ours lacks, or does not fit the other.
    """
    given, fix = _checked(config), "use such a decoder"
    noise = diffusers.noise_level(given)
    projected = PROJECTION | dict(projection)
    fields = (*PROJECTION, "time_embed_dim", "cross_attention_dim")
    check(projected, dict.fromkeys(fields, COUNT), "config.json of text_proj")
    for field, same in (
        ("time_embed_dim", noise.width),
        ("cross_attention_dim", given["cross_attention_dim"]),
    ):
        expect(projected.get(field) == same, field, projected.get(field), f"{same}, as the decoder has", fix)
    return DecoderLayout(
        _network(given),
        noise,
        given["in_channels"],
        projected["clip_embeddings_dim"],
        given["cross_attention_dim"],
        projected["clip_extra_context_tokens"],
    )


def decoder_config(layout: DecoderLayout, image_size: int) -> dict[str, Any]:
    """The `config.json` of the U-Net.

    Raises:
      UserError: the network has an option that the published class lacks.
    """
    network, noise = layout.network, layout.noise
    middle: Any = network.middle
    attention: Any = middle.attention
    attends = [level.attention is not None for level in network.levels]
    config = DEFAULTS | {
        "sample_size": image_size, "in_channels": layout.in_channels, "out_channels": network.out_channels,
        "flip_sin_to_cos": not noise.sine_first, "freq_shift": int(noise.endpoint),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "down_block_types": [BLOCKS["Down"][each] for each in attends],
        "up_block_types": [BLOCKS["Up"][each] for each in reversed(attends)],
        "block_out_channels": [level.width for level in network.levels],
        "layers_per_block": network.levels[0].blocks, "norm_num_groups": network.block.groups,
        "norm_eps": network.block.eps, "cross_attention_dim": layout.context_width,
        "attention_head_dim": attention.head_dim, "class_embed_type": "identity",
        "resnet_time_scale_shift": "scale_shift" if network.block.modulation == "scale_shift" else "default",
        "time_embedding_dim": noise.width,
    }  # fmt: skip
    same = decoder_layout(config, projection_config(layout)).network == network.clone(
        dtype="float32", remat=False
    )
    if not same:
        raise UserError(
            "network: expected the options of a published decoder, got others. Fix: keep the workdir as it is"
        )
    return config


def projection_config(layout: DecoderLayout) -> dict[str, Any]:
    """The `config.json` of `UnCLIPTextProjModel`."""
    return {
        "_class_name": "UnCLIPTextProjModel", "clip_extra_context_tokens": layout.tokens,
        "clip_embeddings_dim": layout.dim, "time_embed_dim": layout.noise.width,
        "cross_attention_dim": layout.context_width,
    }  # fmt: skip


def projection_entries(layout: DecoderLayout) -> Iterator[Entry]:
    """The mapping of the tensors of `UnCLIPTextProjModel`."""
    image = "clip_image_embeddings_project_to_time_embeddings"
    yield Entry(f"{IMAGE}/null", ("learned_classifier_free_guidance_embeddings",), _ROW)
    yield from dense(f"{IMAGE}/vector", image)
    tokens = _turned(layout.tokens)
    yield Entry(f"{IMAGE}/tokens/kernel", ("clip_extra_context_tokens_proj.weight",), tokens)
    yield Entry(f"{IMAGE}/tokens/bias", ("clip_extra_context_tokens_proj.bias",), tokens)
    yield from dense(f"{TEXT}/embedding", "embedding_proj")
    yield from dense(f"{TEXT}/states", "encoder_hidden_states_proj")
    yield from norm(f"{TEXT}/norm", "text_encoder_hidden_states_norm")


def _turned(tokens: int) -> Layout:
    """[width tokens, in] or [width tokens] -> [in, tokens width] or [tokens width]: the tokens are ours' first axis."""

    def load(arrays: Any, shape: tuple[int, ...]) -> np.ndarray:
        rows = arrays[0].reshape(-1, tokens, *arrays[0].shape[1:])
        return np.moveaxis(rows, 0, 1).reshape(arrays[0].shape).T

    def save(array: np.ndarray) -> list[np.ndarray]:
        rows = array.T.reshape(tokens, -1, *array.T.shape[1:])
        return [np.moveaxis(rows, 0, 1).reshape(array.T.shape)]

    return Layout(load, save)


_ROW = Layout(lambda arrays, shape: arrays[0].reshape(shape), lambda array: [array.reshape(-1)])
"""[channels] -> [1, channels]"""


def _network(given: Mapping[str, Any]) -> UNet:
    attention = JointAttention(head_dim=given["attention_head_dim"])
    levels = tuple(
        Level(width, given["layers_per_block"], attention if name == BLOCKS["Down"][1] else None)
        for width, name in zip(given["block_out_channels"], given["down_block_types"], strict=True)
    )
    modulation = "shift" if given["resnet_time_scale_shift"] == "default" else "scale_shift"
    options = BlockOptions(given["norm_num_groups"], 1, float(given["norm_eps"]), modulation)
    return UNet(levels, given["out_channels"], block=options, middle=ResidualMiddle(attention))


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a U-Net's `config.json` with defaults, checked to be a network of ours."""
    check(config, KINDS, "config.json of the decoder")
    given = DEFAULTS | {name: value for name, value in config.items() if name in DEFAULTS}
    fix = "use a decoder such as Karlo's"
    for field, known in FIXED.items():
        expect(given[field] in known, field, given[field], " or ".join(map(repr, known)), fix)
    down, up, widths = given["down_block_types"], given["up_block_types"], given["block_out_channels"]
    fits = len(down) == len(widths) and all(name in BLOCKS["Down"] for name in down)
    expect(fits, "down_block_types", down, f"{len(widths)} of {' or '.join(BLOCKS['Down'])}", fix)
    mirrored = [BLOCKS["Up"][BLOCKS["Down"].index(name)] for name in reversed(down)]
    expect(list(up) == mirrored, "up_block_types", up, f"{mirrored}, the encoder's backwards", fix)
    groups, heads = given["norm_num_groups"], given["attention_head_dim"]
    for field, value in (("norm_num_groups", groups), ("attention_head_dim", heads)):
        expect(
            not any(width % value for width in widths), field, value, f"a divisor of the widths {widths}", fix
        )
    return given
