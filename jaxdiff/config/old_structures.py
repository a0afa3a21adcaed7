"""Converters of stored blocks whose fields were regrouped: attention into parts, text into tokenizer and encoder."""

from collections.abc import Mapping
from typing import Any

Block = Mapping[str, Any]

ENCODER_FIELDS = ("width", "layers", "window", "words", "phrase", "head_dim", "expansion", "dtype")
"""Fields of the old `Text` that are fields of its encoder now."""

_MOVED = ("groups", "min_group_size", "eps", "modulation", "skip_scale", "resample_taps", "project_resampled")
"""Fields of the old `UNet` that are fields of `BlockOptions` now, with their defaults in the converter."""


def convert_unet(block: Block) -> dict[str, Any]:
    """A `UNet` block in its present form; a block that is in it already is returned as it is."""
    levels = block.get("levels", ())
    if not any(
        name in block for name in ("head_dim", "middle_attention", "residual_resampling", *_MOVED)
    ) and (not any("self_attention" in level or "cross_attention" in level for level in levels)):
        return dict(block)
    heads = {"head_dim": block.get("head_dim", 32), "heads": block.get("heads")}
    kept = {name: value for name, value in block.items() if name not in (*_MOVED, *_REPLACED)}
    return kept | {
        "levels": [_level(level, heads) for level in levels],
        "block": _OPTIONS | {name: block[name] for name in _MOVED if name in block},
        "middle": _middle(block, levels, heads),
        "resampling": "residual" if block.get("residual_resampling", True) else "conv",
        "input_path": "residual" if block.get("residual_input", False) else "none",
        "output_path": "none",
    }


def convert_magnitude_unet(block: Block) -> dict[str, Any]:
    """A `MagnitudeUNet` block whose levels are `MagnitudeLevel`s; they were `Level`s."""
    names = ("width", "blocks", "self_attention", "dropout")
    target = "jaxdiff.models.magnitude_unet:MagnitudeLevel"
    levels = [
        {"target": target} | {name: level[name] for name in names if name in level}
        for level in block.get("levels", ())
    ]
    return {"resample_taps": [1.0, 1.0]} | dict(block) | {"levels": levels}


_REPLACED = ("head_dim", "heads", "middle_attention", "residual_resampling", "residual_input")
_OPTIONS = {
    "target": "jaxdiff.models.interface:BlockOptions",
    "groups": 32,
    "min_group_size": 4,
    "eps": 1e-5,
    "modulation": "scale_shift",
    "skip_scale": 1.0,
    "resample_taps": [1.0, 1.0],
    "project_resampled": False,
}


def _attention(self_attention: bool, cross_attention: bool, heads: Block) -> dict[str, Any] | None:
    if not (self_attention or cross_attention):
        return None
    return {
        "target": "jaxdiff.models.pixel_attention:PixelAttention",
        "self_attention": self_attention,
        "cross_attention": cross_attention,
        **heads,
    }


def _level(level: Block, heads: Block) -> dict[str, Any]:
    kept = {name: level[name] for name in level if name not in ("self_attention", "cross_attention")}
    kinds = level.get("self_attention", False), level.get("cross_attention", False)
    return kept if "attention" in level else kept | {"attention": _attention(*kinds, heads)}


def _middle(block: Block, levels: Any, heads: Block) -> Any:
    """The middle: a transformer as it was, or residual blocks that read tokens if the coarsest level does."""
    if block.get("middle") is not None:
        return block["middle"]
    crossed = bool(levels) and levels[-1].get("cross_attention", False)
    attention = _attention(block.get("middle_attention", True), crossed, heads)
    return {"target": "jaxdiff.models.blocks:ResidualMiddle", "attention": attention}


def convert_text(block: Block) -> dict[str, Any]:
    """``Text(width, length, ...)`` -> ``Text(tokenizer, encoder, ...)``."""
    if "tokenizer" in block or "length" not in block:
        return dict(block)
    encoder = {name: block[name] for name in ENCODER_FIELDS if name in block}
    kept = {name: value for name, value in block.items() if name not in encoder}
    return convert_tokenize(kept) | {
        "encoder": {"target": "jaxdiff.models.text_encoder:ByteTransformer"} | encoder
    }


def convert_tokenize(block: Block) -> dict[str, Any]:
    """A field `length` -> a block `tokenizer`."""
    if "tokenizer" in block or "length" not in block:
        return dict(block)
    tokenizer = {"target": "jaxdiff.data.text:ByteTokenizer", "length": block["length"]}
    return {name: value for name, value in block.items() if name != "length"} | {"tokenizer": tokenizer}
