"""diffusers' `config.json` of an autoencoder: to a network and a codec, and back."""

from collections.abc import Mapping
from typing import Any

from jaxdiff.codecs.latent import Latent
from jaxdiff.errors import UserError, expect
from jaxdiff.interop.config_fields import (
    COUNT,
    COUNTS,
    FLAG,
    NUMBER,
    NUMBERS,
    POSITIVE,
    TEXT,
    TEXTS,
    check,
    optional,
)
from jaxdiff.models.autoencoder_kl import AutoencoderKL
from jaxdiff.models.autoencoder_tiny import AutoencoderTiny
from jaxdiff.typing import Weights

# Defaults of the fields of `config.json` that matter here.
KL: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "block_out_channels": [64], "layers_per_block": 1, "act_fn": "silu",
    "latent_channels": 4, "norm_num_groups": 32, "scaling_factor": 0.18215, "shift_factor": None,
    "latents_mean": None, "latents_std": None, "force_upcast": True, "use_quant_conv": True,
    "use_post_quant_conv": True, "mid_block_add_attention": True,
}  # fmt: skip
TINY: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "encoder_block_out_channels": [64] * 4, "act_fn": "relu",
    "decoder_block_out_channels": [64] * 4, "upsample_fn": "nearest", "latent_channels": 4,
    "upsampling_scaling_factor": 2, "num_encoder_blocks": [1, 3, 3, 3], "num_decoder_blocks": [3, 3, 3, 1],
    "scaling_factor": 1.0, "shift_factor": 0.0, "latents_mean": None, "latents_std": None, "force_upcast": False,
}  # fmt: skip
FIELDS = {
    "_class_name": TEXT, "in_channels": COUNT, "out_channels": COUNT, "latent_channels": COUNT,
    "block_out_channels": COUNTS, "layers_per_block": COUNT, "norm_num_groups": COUNT, "act_fn": TEXT,
    "encoder_block_out_channels": COUNTS, "decoder_block_out_channels": COUNTS, "num_encoder_blocks": COUNTS,
    "num_decoder_blocks": COUNTS, "scaling_factor": POSITIVE, "shift_factor": optional(NUMBER),
    "latents_mean": optional(NUMBERS), "latents_std": optional(NUMBERS), "force_upcast": FLAG,
    "use_quant_conv": FLAG, "use_post_quant_conv": FLAG, "mid_block_add_attention": FLAG,
    "down_block_types": TEXTS, "up_block_types": TEXTS,
}  # fmt: skip
FIXED: dict[str, dict[str, tuple]] = {
    "AutoencoderKL": {"act_fn": ("silu", "swish")},
    "AutoencoderTiny": {"act_fn": ("relu",), "upsample_fn": ("nearest",), "upsampling_scaling_factor": (2,)},
}


def network(config: Mapping[str, Any], dtype: str = "float32") -> AutoencoderKL | AutoencoderTiny:
    """The network that a `config.json` describes.

    Raises:
      UserError: it is another class, or has an option that ours lacks.
    """
    given = _checked(config)
    shared = {
        "latent_channels": given["latent_channels"],
        "image_channels": given["in_channels"],
        "dtype": dtype,
    }
    if given["_class_name"] == "AutoencoderTiny":
        return AutoencoderTiny(
            width=given["encoder_block_out_channels"][0],
            encoder_blocks=tuple(given["num_encoder_blocks"]),
            decoder_blocks=tuple(given["num_decoder_blocks"]),
            **shared,
        )
    return AutoencoderKL(
        widths=tuple(given["block_out_channels"]),
        blocks=given["layers_per_block"],
        groups=given["norm_num_groups"],
        middle_attention=given["mid_block_add_attention"],
        use_quant_conv=given["use_quant_conv"],
        use_post_quant_conv=given["use_post_quant_conv"],
        **shared,
    )


def codec(config: Mapping[str, Any], weights: Weights, dtype: str = "float32", **options: Any) -> Latent:
    """The codec with the network, scale and shift of a `config.json`.

    Args:
      weights: the origin of the network's parameters.
      dtype: in which the network computes.
      **options: further fields of the codec, such as ``slices=1``.

    Raises:
      UserError: it is another class, or has an option that ours lacks.
    """
    given = _checked(config)
    numbers = {
        name: None if given[name] is None else tuple(map(float, given[name]))
        for name in ("latents_mean", "latents_std")
    }
    scale = {
        "scaling_factor": float(given["scaling_factor"]),
        "shift_factor": float(given["shift_factor"] or 0.0),
        "force_upcast": given["force_upcast"],
    }
    return Latent(network(config, dtype), weights, **{**scale, **numbers, **options})


def model_config(codec: Latent, sample_size: int = 512) -> dict[str, Any]:
    """The `config.json` of the codec's network, scale and shift; the inverse of `codec`.

    Args:
      sample_size: height and width of the images.

    Raises:
      UserError: the network is no AutoencoderKL or AutoencoderTiny.
    """
    net: Any = codec.network
    scale = {
        "scaling_factor": codec.scaling_factor, "shift_factor": codec.shift_factor or None,
        "force_upcast": codec.force_upcast, "latent_channels": net.latent_channels,
        "in_channels": net.image_channels, "out_channels": net.image_channels,
    }  # fmt: skip
    if isinstance(net, AutoencoderTiny):
        return _tiny_config(net, codec) | scale | {"shift_factor": codec.shift_factor}
    if not isinstance(net, AutoencoderKL):
        raise _unsupported("codec.network", type(net).__name__)
    levels = len(net.widths)
    numbers = {
        name: None if getattr(codec, name) is None else list(getattr(codec, name))
        for name in ("latents_mean", "latents_std")
    }
    return scale | numbers | {
        "_class_name": "AutoencoderKL", "act_fn": "silu", "sample_size": sample_size,
        "block_out_channels": list(net.widths), "layers_per_block": net.blocks, "norm_num_groups": net.groups,
        "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_quant_conv": net.use_quant_conv, "use_post_quant_conv": net.use_post_quant_conv,
        "mid_block_add_attention": net.middle_attention,
    }  # fmt: skip


def _tiny_config(net: AutoencoderTiny, codec: Latent) -> dict[str, Any]:
    if codec.latents_mean is not None:
        raise _unsupported("codec.latents_mean", codec.latents_mean)
    widths = [net.width] * len(net.encoder_blocks)
    return {
        "_class_name": "AutoencoderTiny", "act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2,
        "encoder_block_out_channels": widths, "decoder_block_out_channels": widths,
        "num_encoder_blocks": list(net.encoder_blocks), "num_decoder_blocks": list(net.decoder_blocks),
    }  # fmt: skip


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `config.json` with defaults, checked to be those of a network of ours."""
    check(config, FIELDS, "config.json of the autoencoder")
    kind = config.get("_class_name", "AutoencoderKL")
    fix = "name the folder of such an autoencoder"
    expect(kind in FIXED, "_class_name", kind, "AutoencoderKL or AutoencoderTiny", fix)
    defaults = TINY if kind == "AutoencoderTiny" else KL
    given = defaults | {name: value for name, value in config.items() if name in defaults}
    for field, known in FIXED[kind].items():
        expect(given[field] in known, field, given[field], " or ".join(map(repr, known)), "use such a model")
    for field, known in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        blocks = config.get(field, [known])
        expect(set(blocks) <= {known}, field, blocks, f"{known} at every level", "use such a model")
    images = given["in_channels"]
    expected = f"in_channels={images}, since images are decoded as they were encoded"
    expect(
        given["out_channels"] == images, "out_channels", given["out_channels"], expected, "use such a model"
    )
    if kind == "AutoencoderTiny":
        field = "decoder_block_out_channels"
        widths = [*given["encoder_block_out_channels"], *given[field]]
        expect(len(set(widths)) == 1, field, widths, "one width everywhere", "use such a model")
    return given | {"_class_name": kind}


def _unsupported(field: str, value: object) -> UserError:
    return UserError(
        f"{field}={value}: expected an option that diffusers' autoencoders have, got {value}. "
        "Fix: keep the workdir as it is"
    )
