"""CLIP's image encoder in the names of transformers.

>>> encoder = vision_encoder(tensors, config)  # config.json, or None
>>> params = vision_params(encoder, tensors)
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxdiff.errors import UserError
from jaxdiff.interop.mapping import (
    DENSE,
    SAME,
    Entry,
    Layout,
    Tensors,
    norm,
    to_params,
    to_pending,
    to_pending_tensors,
    to_tensors,
)
from jaxdiff.interop.pending import Pending
from jaxdiff.interop.text_encoders import clip_block
from jaxdiff.models.clip_vision import ClipVisionEncoder
from jaxdiff.typing import Params

PREFIX = "vision_model."
PATCHES, PROJECTION = "embeddings.patch_embedding.weight", "visual_projection.weight"
BUFFERS = ("position_ids",)
"""Last parts of names that are no parameters."""

OPENAI = (768, 1024)
"""Widths of OpenAI's encoders, whose activation is quick_gelu; OpenCLIP's have GELU."""


def vision_encoder(tensors: Tensors, config: Mapping[str, Any] | None = None) -> ClipVisionEncoder:
    """The image encoder of the sizes in a file.

    Args:
      tensors: arrays by name; only shapes are read. Those of the text encoder are left out.
      config: `config.json` of transformers, whose defaults hold where it names no value. Without it, heads and
        activation are those of the published encoder of this width.

    Raises:
      UserError: the names are those of no image encoder.
    """
    given = _named(tensors)
    settings = (config or {}).get("vision_config") or config or {}
    width, _, patch, _ = given[PATCHES].shape
    places = given["embeddings.position_embedding.weight"].shape[0] - 1
    blocks = [int(match[1]) for name in given if (match := re.match(r"encoder\.layers\.(\d+)\.", name))]
    return ClipVisionEncoder(
        width=width,
        layers=max(blocks, default=-1) + 1,
        heads=settings.get("num_attention_heads", 12 if settings or width == 768 else 16),
        hidden=given["encoder.layers.0.mlp.fc1.weight"].shape[0],
        activation=settings.get("hidden_act", "quick_gelu" if settings or width in OPENAI else "gelu"),
        image_size=patch * round(places**0.5),
        patch=patch,
        projection=given[PROJECTION].shape[0],
        eps=settings.get("layer_norm_eps", 1e-5),
    )


def vision_params(encoder: ClipVisionEncoder, tensors: Tensors) -> Params:
    """The encoder's parameters, float32.

    Raises:
      UserError: lists every tensor that is missing, unexpected or of another shape.
    """
    return to_params(entries(encoder), _named(tensors), parameter_shapes(encoder), BUFFERS)


def vision_pending(encoder: ClipVisionEncoder, tensors: Tensors) -> dict[str, Pending]:
    """The encoder's parameters by their paths, not yet read and in the file's types; as `vision_params` otherwise."""
    return to_pending(entries(encoder), _named(tensors), parameter_shapes(encoder), BUFFERS)


def parameter_shapes(encoder: ClipVisionEncoder) -> Params:
    """The shapes of the encoder's parameters."""
    side = encoder.image_size
    pixels = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    return nn.meta.unbox(jax.eval_shape(encoder.init, jax.random.key(0), pixels))["params"]


def vision_tensors(encoder: ClipVisionEncoder, params: Params) -> dict[str, np.ndarray]:
    """A file's tensors from the encoder's parameters: the inverse of `vision_params`."""
    return _published(to_tensors(entries(encoder), params))


def vision_pending_tensors(encoder: ClipVisionEncoder, arrays: Mapping[str, Any]) -> dict[str, Pending]:
    """A file's tensors, not yet read, from the encoder's arrays by their paths; as `vision_tensors` otherwise."""
    return _published(to_pending_tensors(entries(encoder), arrays))


def vision_config(encoder: ClipVisionEncoder) -> dict[str, Any]:
    """The `config.json` of transformers: the inverse of `vision_encoder`."""
    return {
        "architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model",
        "hidden_size": encoder.width, "intermediate_size": encoder.hidden or 4 * encoder.width,
        "num_hidden_layers": encoder.layers, "num_attention_heads": encoder.heads, "hidden_act": encoder.activation,
        "image_size": encoder.image_size, "patch_size": encoder.patch, "projection_dim": encoder.projection,
        "layer_norm_eps": encoder.eps,
    }  # fmt: skip


def _published(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name if name == PROJECTION else f"{PREFIX}{name}": array for name, array in tensors.items()}


def entries(encoder: ClipVisionEncoder) -> Iterator[Entry]:
    """The mapping of the parameters to names without a prefix."""
    yield Entry("class_embedding", ("embeddings.class_embedding",), _ROW)
    yield Entry("patch_embedding/kernel", (PATCHES,), PATCH)
    yield Entry("position_embedding", ("embeddings.position_embedding.weight",), SAME)
    yield from norm("norm_embedded", "pre_layrnorm")
    yield from norm("norm", "post_layernorm")
    yield Entry("projection/kernel", (PROJECTION,), DENSE)
    for i in range(encoder.layers):
        yield from clip_block(f"block_{i}", f"encoder.layers.{i}")


def _load_patch(tensors: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    return tensors[0].transpose(2, 3, 1, 0).reshape(shape)


def _save_patch(array: np.ndarray) -> list[np.ndarray]:
    side = round((array.shape[0] // 3) ** 0.5)
    return [array.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)]


PATCH = Layout(_load_patch, _save_patch)
"""[out, 3, height, width] -> [height width 3, out]"""

_ROW = Layout(lambda tensors, shape: tensors[0].reshape(shape), lambda array: [array.reshape(-1)])
"""[channels] -> [1, channels]"""


def _named(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors of the image encoder by their names without a prefix."""
    inside = [name for name in tensors if name.startswith((PREFIX, PROJECTION))]
    whole = any(name.startswith(PREFIX) for name in inside)
    given = {name.removeprefix(PREFIX): tensors[name] for name in (inside if whole else tensors)}
    for name in (
        PATCHES,
        "embeddings.position_embedding.weight",
        "encoder.layers.0.mlp.fc1.weight",
        PROJECTION,
    ):
        if name not in given:
            shown = ", ".join(sorted(tensors)[:4]) or "none"
            raise UserError(
                f"tensors: expected those of CLIP's image encoder, {name} among them, got {shown}. "
                "Fix: give the file of a CLIPVisionModelWithProjection"
            )
    return given
