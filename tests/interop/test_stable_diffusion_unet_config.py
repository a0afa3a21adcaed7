"""Configs of U-Nets that are none of Stable Diffusion's: each is refused in one line that names the field."""

import dataclasses

import pytest

from jaxdiff.errors import UserError
from jaxdiff.interop.stable_diffusion_unet_config import unet_layout
from jaxdiff.interop.stable_diffusion_unet_export import layout_of, unet_config
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.spatial_transformer import SpatialTransformer
from jaxdiff.models.transformer import TransformerMiddle
from jaxdiff.models.unet import Level
from tests.interop.stable_diffusion_unets import PUBLISHED, SD1, SIZES, TINY, denoiser_of, shapes

OTHERS = {
    # Other networks of diffusers: Karlo, Kandinsky, DeepFloyd IF, GLIGEN, Versatile Diffusion, distilled middles.
    "_class_name": "UNet2DModel", "encoder_hid_dim": 1280, "encoder_hid_dim_type": "image_proj",
    "addition_embed_type": "text_image", "attention_type": "gated", "dual_cross_attention": True,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "class_embed_type": "identity", "time_embedding_act_fn": "silu",
    "timestep_post_act": "silu", "time_embedding_type": "fourier", "cross_attention_norm": "group_norm",
    "class_embeddings_concat": True, "conv_in_kernel": 1, "conv_out_kernel": 5, "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1.41, "center_input_sample": True, "act_fn": "gelu", "mid_block_scale_factor": 2,
    "resnet_time_scale_shift": "spatial", "num_attention_heads": 8, "downsample_padding": 2, "freq_shift": 2,
    # Values that no network has.
    "block_out_channels": 320, "in_channels": "4", "out_channels": 0, "norm_num_groups": None, "norm_eps": 0,
    "layers_per_block": [1, 2], "attention_head_dim": [4, 4, "4"], "cross_attention_dim": [12, 12, 8],
    "transformer_layers_per_block": [[1], [1], [1]], "reverse_transformer_layers_per_block": [1, 2, 1],
    "only_cross_attention": "no", "dropout": 1.5, "time_cond_proj_dim": -1, "num_class_embeds": 1.5,
    "time_embedding_dim": True, "use_linear_projection": "yes", "flip_sin_to_cos": None,
    "up_block_types": ["CrossAttnUpBlock2D"] * 3, "down_block_types": ["DownBlock2D"],
}  # fmt: skip


@pytest.mark.parametrize("field", OTHERS)
def test_an_option_that_ours_lacks_is_refused(field):
    with pytest.raises(UserError, match=f"^{field}=[^\n]*: expected [^\n]*, got [^\n]*. Fix: [^\n]*$"):
        unet_layout(SD1 | {field: OTHERS[field]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"down_block_types": ["SimpleCrossAttnDownBlock2D"] * 3},
            "down_block_types='SimpleCrossAttnDownBlock2D'",
        ),
        ({"up_block_types": ["AttnUpBlock2D"] * 3}, "up_block_types='AttnUpBlock2D'"),
        ({"block_out_channels": [16, 20, 32]}, "norm_num_groups=8"),
        ({"attention_head_dim": 3}, "attention_head_dim=3"),
        ({"attention_head_dim": [4, 4, 3]}, r"attention_head_dim=\[4, 4, 3\]"),
        ({"attention_head_dim": 0}, "attention_head_dim=0"),
        ({"in_channels": 0}, "in_channels=0"),
        ({"attention_head_dim": [4, 5, 8]}, r"attention_head_dim=\[4, 5, 8\]"),
        ({"transformer_layers_per_block": 0}, "depth=0"),
        (SIZES, "projection_class_embeddings_input_dim=None"),
        (SIZES | {"class_embed_type": "projection"}, "class_embed_type='projection'"),
        (SIZES | {"addition_time_embed_dim": None}, "addition_time_embed_dim=None"),
        (SIZES | {"flip_sin_to_cos": False}, "flip_sin_to_cos=False"),
        (SIZES | {"freq_shift": 1}, "freq_shift=1"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(change, message):
    with pytest.raises(UserError, match=f"^{message}: expected [^\n]*, got [^\n]*. Fix: [^\n]*$"):
        unet_layout(SD1 | change)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_config_comes_back(name):
    """The fields that say what the network is have the values of the published config."""
    config, found = PUBLISHED[name], unet_config(unet_layout(PUBLISHED[name]))
    unread = {"sample_size"} | {"transformer_layers_per_block", "only_cross_attention"} & config.keys()
    assert {key: found[key] for key in config if key not in unread} == {
        key: value for key, value in config.items() if key not in unread
    }
    assert unet_layout(found) == unet_layout(config)


def test_a_projection_of_classes_takes_the_place_of_a_table():
    """As in diffusers, which makes no table then."""
    assert unet_layout(TINY["unclip"] | {"num_class_embeds": 7}) == unet_layout(TINY["unclip"])


def test_numbers_of_a_level_without_attention_are_not_read():
    config = TINY["sdxl"] | {"block_out_channels": [24, 32, 64], "attention_head_dim": [5, 2, 4]}
    layout = unet_layout(config | {"transformer_layers_per_block": [0, 2, 3]})
    assert layout == unet_layout(config)
    assert unet_layout(unet_config(layout)) == layout


def sd1(**options):
    return dataclasses.replace(unet_layout(SD1), network=unet_layout(SD1).network.clone(**options))


PART = SpatialTransformer(heads=4, head_dim=None, groups=8)
DEEP, NARROW = dataclasses.replace(PART, depth=2), dataclasses.replace(PART, expansion=2)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (sd1(resampling="residual"), "network.resampling=residual"),
        (sd1(coordinates=True), "network.coordinates=True"),
        (sd1(stem_width=24), "network.stem_width=24"),
        (sd1(middle=ResidualMiddle(PixelAttention(head_dim=8))), "network.middle.attention=PixelAttention"),
        (sd1(middle=ResidualMiddle(None)), "network.middle.attention=None"),
        (sd1(middle=TransformerMiddle(64, 1)), "network.middle=TransformerMiddle"),
        (sd1(block=BlockOptions(8, 1, modulation="shift", skip_scale=0.5)), "network.block.skip_scale=0.5"),
        (sd1(levels=(Level(16, 1, PART), Level(32, 1, dropout=0.5))), r"network.levels\[1\].dropout=0.5"),
        (sd1(levels=(Level(16, 1), Level(32, 1, DEEP))), "network.middle.attention.depth=1"),
        (sd1(levels=(Level(16, 1, NARROW), Level(32, 1))), r"levels\[0\].attention.expansion"),
    ],
)  # fmt: skip
def test_a_network_that_diffusers_lacks_is_not_written(layout, message):
    with pytest.raises(
        UserError, match=f"{message}.*expected an option that UNet2DConditionModel has.*Fix: "
    ):
        unet_config(layout)


def test_options_of_training_and_equal_forms_are_written():
    """Precision and rematerialisation change no number, and four channels a head are four heads in 16 channels."""
    narrow = SpatialTransformer(head_dim=4, groups=8)
    levels = (Level(16, 1, narrow), Level(32, 1, PART), Level(32, 1))
    layout = sd1(levels=levels, dtype="bfloat16", remat=True, block=BlockOptions(8, 2, modulation="shift"))
    layout = dataclasses.replace(layout, noise=layout.noise.clone(frequencies=None))
    assert unet_layout(unet_config(layout)) == unet_layout(SD1 | {"attention_head_dim": [4, 4, 4]})


def test_a_run_without_such_a_network_has_no_layout():
    denoiser = denoiser_of(unet_layout(TINY["sdxl"]))
    params, conditioner = shapes(denoiser), denoiser.conditioner
    for changed, message in [
        (denoiser.clone(network=conditioner.noise), "network=NoiseLevel"),
        (denoiser.clone(conditioner=conditioner.clone(noise=denoiser.network)), "conditioner.noise=UNet"),
        (
            denoiser.clone(conditioner=conditioner.clone(mapping=conditioner.noise)),
            "conditioner.mapping=NoiseLevel",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            layout_of(changed, params)
    with pytest.raises(UserError, match="network: expected cross-attention"):
        layout_of(denoiser, {"network": {"stem": params["network"]["stem"]}})
