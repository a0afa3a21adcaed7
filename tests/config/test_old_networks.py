"""U-Nets of stored configs whose attention was fields of a level and of the network."""

import json

import pytest

from jaxdiff.config.blocks import build, spec
from jaxdiff.config.files import differences, from_json, to_json
from jaxdiff.config.overrides import override
from jaxdiff.config.renamed import upgrade
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.magnitude_unet import MagnitudeLevel, MagnitudeUNet
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.transformer import TransformerMiddle
from jaxdiff.models.unet import Level, UNet

OPTIONS = {
    "groups": 16, "min_group_size": 1, "eps": 1e-6, "modulation": "shift", "skip_scale": 0.5,
    "resample_taps": (1.0, 3.0, 3.0, 1.0), "project_resampled": True,
}  # fmt: skip
DEFAULTS = {
    "target": "jaxdiff.models.unet:UNet", "patch": 1, "coordinates": False, "stem_width": None, "middle": None,
    "head_dim": 32, "heads": None, "groups": 32, "min_group_size": 4, "eps": 1e-5, "modulation": "scale_shift",
    "skip_scale": 1.0, "resample_taps": [1.0, 1.0], "project_resampled": False, "residual_resampling": True,
    "pad_end": False, "resampled_skips": True, "middle_attention": True, "decoder_attention": "every",
    "residual_input": False, "dtype": "float32", "remat": False,
}  # fmt: skip
"""A block as the version before wrote it, without `levels` and `out_channels`."""


def level(width, self_attention=False, cross_attention=False, dropout=0.0):
    return {
        "target": "jaxdiff.models.unet:Level",
        "width": width,
        "blocks": 2,
        "self_attention": self_attention,
        "cross_attention": cross_attention,
        "dropout": dropout,
    }


def old(*levels, **options):
    return DEFAULTS | {"levels": list(levels), "out_channels": 3} | options


TRANSFORMER = {
    "target": "jaxdiff.models.transformer:TransformerLevel", "width": 64, "blocks": 2, "head_dim": 32,
    "expansion": 4, "cross_attention": False, "dropout": 0.1,
}  # fmt: skip
PIXELS = PixelAttention(head_dim=None, heads=2)
CASES = {
    "defaults": (old(level(64), level(128)), UNet((Level(64), Level(128)), 3)),
    "attention_of_levels": (
        old(level(64, dropout=0.1), level(64, True), level(64, False, True), head_dim=None, heads=2),
        UNet(
            (
                Level(64, dropout=0.1),
                Level(64, attention=PIXELS),
                Level(64, attention=PixelAttention(False, True, None, 2)),
            ),
            3,
            middle=ResidualMiddle(PixelAttention(True, True, None, 2)),
        ),
    ),
    "no_attention": (
        old(level(64), middle_attention=False),
        UNet((Level(64),), 3, middle=ResidualMiddle(None)),
    ),
    "tokens_in_the_middle": (
        old(level(64, True, True), middle_attention=False),
        UNet(
            (Level(64, attention=PixelAttention(True, True)),),
            3,
            middle=ResidualMiddle(PixelAttention(False, True)),
        ),
    ),
    "options_of_blocks": (old(level(64), **OPTIONS), UNet((Level(64),), 3, block=BlockOptions(**OPTIONS))),
    "resolution": (
        old(level(64), level(64), residual_resampling=False, pad_end=True, residual_input=True, patch=2),
        UNet((Level(64), Level(64)), 3, resampling="conv", pad_end=True, input_path="residual", patch=2),
    ),
    "transformer": (
        old(level(64), middle=TRANSFORMER),
        UNet((Level(64),), 3, middle=TransformerMiddle(64, 2, 32, dropout=0.1)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_old_unet_builds_the_same_network(name):
    stored, expected = CASES[name]
    assert build(from_json(json.dumps({"network": stored}))) == {"network": expected}


def test_every_default_is_written_down():
    """A run resumed by its original config must find no difference."""
    now = spec(UNet, levels=(spec(Level, width=64, attention=spec(PixelAttention)),), out_channels=3)
    assert differences(upgrade(old(level(64, True))), now) == {}


def test_a_present_config_is_unchanged():
    config = spec(
        UNet, levels=(spec(Level, width=8),), out_channels=1, middle=spec(ResidualMiddle, attention=None)
    )
    assert differences(config, from_json(to_json(config))) == {}
    assert build(from_json(to_json(config))) == build(config)


def test_an_old_magnitude_unet_builds_the_same_network():
    stored = {
        "target": "jaxdiff.models.magnitude_unet:MagnitudeUNet",
        "levels": [level(64), level(128, True)],
        "out_channels": 3,
        "head_dim": 64,
    }
    levels = (MagnitudeLevel(64), MagnitudeLevel(128, self_attention=True))
    assert build(from_json(json.dumps(stored))) == MagnitudeUNet(levels, 3)
    now = spec(MagnitudeUNet, levels=(spec(MagnitudeLevel, width=8),), out_channels=1)
    assert differences(now, from_json(to_json(now))) == {}


def test_an_old_flag_reaches_a_field_that_moved_into_a_block():
    config = spec(UNet, levels=(spec(Level, width=64),), out_channels=3)
    override(config, "eps", "1e-3")
    override(config, "middle.attention", "none")
    override(
        config, "levels[0].attention", "jaxdiff.models.pixel_attention:PixelAttention(heads=2,head_dim=None)"
    )
    assert build(config) == UNet(
        (Level(64, attention=PIXELS),), 3, block=BlockOptions(eps=1e-3), middle=ResidualMiddle(None)
    )
