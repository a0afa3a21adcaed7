"""`config.json` of text encoders in transformers: its fields checked, and that of CLIP written."""

from collections.abc import Mapping
from typing import Any

from jaxdiff.interop.config_fields import COUNT, INDEX, OBJECT, POSITIVE, TEXT, check, optional
from jaxdiff.models.clip_text import ClipTextEncoder

FILE = "config.json of the text encoder"
CLIP_FIELDS = {
    "num_attention_heads": optional(COUNT), "hidden_act": optional(TEXT), "eos_token_id": optional(INDEX),
    "layer_norm_eps": optional(POSITIVE),
}  # fmt: skip
T5_FIELDS = {
    "feed_forward_proj": optional(TEXT), "relative_attention_max_distance": optional(COUNT),
    "pad_token_id": optional(INDEX), "layer_norm_epsilon": optional(POSITIVE),
}  # fmt: skip


def clip_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of CLIP's text encoder, also of a config that has them besides those of an image encoder.

    Raises:
      UserError: a field is of another type.
    """
    check(config, {"text_config": optional(OBJECT)}, FILE)
    settings = config.get("text_config") or config
    check(settings, CLIP_FIELDS, FILE)
    return settings


def t5_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of T5.

    Raises:
      UserError: a field is of another type.
    """
    check(config, T5_FIELDS, FILE)
    return config


def clip_config(encoder: ClipTextEncoder, pad: int | None = None) -> dict[str, Any]:
    """The `config.json` of transformers for CLIP's text encoder; the inverse of `text_encoders.clip_encoder`.

    Args:
      encoder: the module.
      pad: the id with which its tokenizer fills a text, which changes nothing in the encoder.
    """
    projected = encoder.projection is not None
    return {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "model_type": "clip_text_model", "hidden_size": encoder.width, "num_hidden_layers": encoder.layers,
        "num_attention_heads": encoder.heads, "intermediate_size": encoder.hidden or 4 * encoder.width,
        "hidden_act": encoder.activation, "vocab_size": encoder.vocabulary, "max_position_embeddings": encoder.length,
        "layer_norm_eps": encoder.eps, "projection_dim": encoder.projection or encoder.width,
        "bos_token_id": 49406 if encoder.end in (2, 49407) else encoder.end - 1, "eos_token_id": encoder.end,
        "pad_token_id": pad,
    }  # fmt: skip
