"""Published text encoders: CLIP in the names of transformers and of OpenCLIP, and T5's encoder.

>>> encoder = clip_encoder(tensors, config)  # config.json, or None for a single file
>>> params = encoder_params(encoder, tensors)
>>> encoder_tensors(encoder, params, "open_clip")

Sizes follow from the shapes of the tensors: published configs name another `projection_dim` than their files have. A
config adds what no shape tells: heads, activation, epsilon and the id of the end.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UserError, expect
from jaxdiff.interop import text_encoder_configs
from jaxdiff.interop.mapping import (
    DENSE,
    SAME,
    Entry,
    Tensors,
    dense,
    from_heads,
    heads,
    norm,
    separate_heads,
    to_params,
    to_pending,
    to_pending_tensors,
    to_tensors,
)
from jaxdiff.interop.pending import Pending
from jaxdiff.models.clip_text import ClipTextEncoder
from jaxdiff.models.t5_encoder import T5Encoder
from jaxdiff.typing import Params

Encoder = ClipTextEncoder | T5Encoder

TOKENS = {
    "clip": "embeddings.token_embedding.weight",
    "open_clip": "token_embedding.weight",
    "t5": "shared.weight",
}
"""The table of token embeddings in each layout, by which a file's layout is known."""

BLOCKS = {"clip": "encoder.layers", "open_clip": "transformer.resblocks", "t5": "encoder.block"}
PROJECTIONS = {"clip": "text_projection.weight", "open_clip": "text_projection"}
BUFFERS = ("position_ids", "logit_scale", "logit_bias", "attn_mask")
"""Last parts of names that are no parameters of the text encoder."""

OTHER_TOWERS = ("vision_model.", "visual_projection.", "visual.", "decoder.", "lm_head.")
"""First parts of names that belong to the image encoder or to T5's decoder, where a file has the whole model."""

OPEN_CLIP_WIDTHS = (1024, 1280)
"""Channels of OpenCLIP's ViT-H/14 and ViT-bigG/14, which OpenAI's models do not have."""

HEAD_DIM = 64
"""Channels of an attention head in every published text encoder of CLIP."""


def clip_encoder(
    tensors: Tensors,
    config: Mapping[str, Any] | None = None,
    prefix: str = "",
    penultimate: bool = False,
) -> ClipTextEncoder:
    """CLIP's text encoder of the sizes in a file.

    Args:
      tensors: arrays by name; only shapes are read.
      config: `config.json` of transformers. Without it heads have 64 channels, the end is the last id, and the
        activation is quick_gelu in transformers' names (OpenAI's models), and GELU in those of OpenCLIP and in the
        widths of its models.
      prefix: first part of the names, ``cond_stage_model.model.`` in Stable Diffusion 2's single files. Other tensors
        are left out.
      penultimate: the last block and the projection are left out: Stable Diffusion 2 reads the output of the block
        before, after the last norm.

    Raises:
      UserError: the names are those of no known text encoder, or the config has an unknown activation.
    """
    given = _named(tensors, prefix)
    layout = _layout(given, "clip", "open_clip")
    settings = text_encoder_configs.clip_settings(config or {})
    vocabulary, width = _shape(given, TOKENS[layout])
    places = "embeddings.position_embedding.weight" if layout == "clip" else "positional_embedding"
    expand = "mlp.fc1.weight" if layout == "clip" else "mlp.c_fc.weight"
    projects = PROJECTIONS[layout] in given and not penultimate
    openai = layout == "clip" and width not in OPEN_CLIP_WIDTHS
    return ClipTextEncoder(
        width=width,
        layers=_count(given, layout) - int(penultimate),
        heads=settings.get("num_attention_heads") or max(width // HEAD_DIM, 1),
        hidden=_shape(given, f"{BLOCKS[layout]}.0.{expand}")[0],
        activation=settings.get("hidden_act") or ("quick_gelu" if openai else "gelu"),
        vocabulary=vocabulary,
        length=_shape(given, places)[0],
        end=settings.get("eos_token_id") or vocabulary - 1,
        projection=_shape(given, PROJECTIONS[layout])[0 if layout == "clip" else 1] if projects else None,
        eps=settings.get("layer_norm_eps") or 1e-5,
    )


def t5_encoder(tensors: Tensors, config: Mapping[str, Any] | None = None, prefix: str = "") -> T5Encoder:
    """T5's encoder of the sizes in a file; the decoder, if the file has one, is left out.

    Args:
      tensors: arrays by name; only shapes are read.
      config: `config.json` of transformers. Without it, activations are those of the published versions: GELU with a
        gate, ReLU without.
      prefix: first part of the names. Other tensors are left out.

    Raises:
      UserError: the names are not T5's, or the config has an unknown activation.
    """
    given, config = _named(tensors, prefix), text_encoder_configs.t5_settings(config or {})
    layout = _layout(given, "t5")
    vocabulary, width = _shape(given, TOKENS[layout])
    first = f"{BLOCKS[layout]}.0.layer"
    buckets, count = _shape(given, f"{first}.0.SelfAttention.relative_attention_bias.weight")
    gated = f"{first}.1.DenseReluDense.wi_0.weight" in given
    kind = config.get("feed_forward_proj") or ("gated-gelu" if gated else "relu")
    return T5Encoder(
        width=width,
        layers=_count(given, layout),
        heads=count,
        head_dim=_shape(given, f"{first}.0.SelfAttention.q.weight")[0] // count,
        hidden=_shape(given, f"{first}.1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight")[0],
        activation="gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-"),
        gated=gated,
        vocabulary=vocabulary,
        buckets=buckets,
        max_distance=config.get("relative_attention_max_distance") or 128,
        pad=config.get("pad_token_id") or 0,
        eps=config.get("layer_norm_epsilon") or 1e-6,
    )


def encoder_params(encoder: Encoder, tensors: Tensors, prefix: str = "") -> Params:
    """The encoder's parameters, float32, from a file's tensors in any of the layouts.

    Args:
      encoder: as `clip_encoder` or `t5_encoder` returns it.
      tensors: arrays by name. Names may begin with ``text_model.``, and buffers are left out.
      prefix: see `clip_encoder`.

    Raises:
      UserError: lists every tensor that is missing, unexpected or of another shape.
    """
    layout, given = _selected(encoder, tensors, prefix)
    return to_params(entries(encoder, layout), given, _shapes(encoder), BUFFERS)


def encoder_pending(encoder: Encoder, tensors: Tensors, prefix: str = "") -> dict[str, Pending]:
    """The encoder's parameters by their paths, not yet read and in the file's types; as `encoder_params` otherwise."""
    layout, given = _selected(encoder, tensors, prefix)
    return to_pending(entries(encoder, layout), given, _shapes(encoder), BUFFERS)


def _selected(encoder: Encoder, tensors: Tensors, prefix: str) -> tuple[str, dict[str, np.ndarray]]:
    """The layout of a file, and the tensors in it that the encoder has use for."""
    given = _named(tensors, prefix)
    layout = _layout(given, *_layouts(encoder))
    if isinstance(encoder, ClipTextEncoder) and encoder.projection is None:
        given.pop(PROJECTIONS[layout], None)
    if layout == "open_clip":  # the last block, which Stable Diffusion 2 does not read
        last = f"{BLOCKS[layout]}.{encoder.layers}."
        given = {name: array for name, array in given.items() if not name.startswith(last)}
    return layout, given


def encoder_tensors(encoder: Encoder, params: Params, layout: str | None = None) -> dict[str, np.ndarray]:
    """A file's tensors from the encoder's parameters: the inverse of `encoder_params`.

    Args:
      encoder: the module.
      params: its parameters.
      layout: "clip" for transformers' CLIP, where names begin with ``text_model.`` as in all published folders;
        "open_clip" for the single files of Stable Diffusion 2 and SDXL. None for that of transformers.

    Raises:
      UserError: the layout is not one of the encoder's.
    """
    layout = _known_layout(encoder, layout)
    return _named_as(layout, to_tensors(entries(encoder, layout), params))


def encoder_pending_tensors(
    encoder: Encoder, arrays: Mapping[str, Any], layout: str | None = None
) -> dict[str, Pending]:
    """A file's tensors, not yet read, from the encoder's arrays by their paths; as `encoder_tensors` otherwise."""
    layout = _known_layout(encoder, layout)
    return _named_as(layout, to_pending_tensors(entries(encoder, layout), arrays))


def _known_layout(encoder: Encoder, layout: str | None) -> str:
    known = _layouts(encoder)
    layout = layout or known[0]
    expect(layout in known, "layout", layout, " or ".join(known), "choose one of these")
    return layout


def _named_as(layout: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors under their published names."""
    if layout != "clip":
        return dict(tensors)
    return {published_name(name): array for name, array in tensors.items()}


def published_name(name: str) -> str:
    """The name of a tensor of CLIP in published folders: all but the projection begin with ``text_model.``."""
    return name if name == PROJECTIONS["clip"] else f"text_model.{name}"


def entries(encoder: Encoder, layout: str) -> Iterator[Entry]:
    """The mapping of an encoder's parameters to the names of a layout, without prefixes."""
    whole, block = _ENTRIES[layout]
    yield Entry("token_embedding", (TOKENS[layout],), SAME)
    yield from whole()
    for i in range(encoder.layers):
        theirs = f"{BLOCKS[layout]}.{i}"
        yield from block(f"block_{i}", theirs)
        if isinstance(encoder, T5Encoder):
            name = "wi_1" if encoder.gated else "wi"
            yield Entry(
                f"block_{i}/expand/kernel", (f"{theirs}.layer.1.DenseReluDense.{name}.weight",), DENSE
            )


def _clip() -> Iterator[Entry]:
    yield Entry("position_embedding", ("embeddings.position_embedding.weight",), SAME)
    yield from norm("norm", "final_layer_norm")
    yield Entry("projection/kernel", ("text_projection.weight",), DENSE)


def _open_clip() -> Iterator[Entry]:
    yield Entry("position_embedding", ("positional_embedding",), SAME)
    yield from norm("norm", "ln_final")
    yield Entry("projection/kernel", ("text_projection",), SAME)  # [in, out], unlike a linear layer's


def _t5() -> Iterator[Entry]:
    first = "encoder.block.0.layer.0.SelfAttention"
    yield Entry("distance_embedding", (f"{first}.relative_attention_bias.weight",), SAME)
    yield Entry("norm/scale", ("encoder.final_layer_norm.weight",), SAME)


def clip_block(ours: str, theirs: str) -> Iterator[Entry]:
    yield from norm(f"{ours}/norm_0", f"{theirs}.layer_norm1")
    for kind, name in (("kernel", "weight"), ("bias", "bias")):
        keys = tuple(f"{theirs}.self_attn.{which}_proj.{name}" for which in "qkv")
        yield Entry(f"{ours}/query_key_value/{kind}", keys, separate_heads())
    yield Entry(f"{ours}/attention_out/kernel", (f"{theirs}.self_attn.out_proj.weight",), from_heads())
    yield Entry(f"{ours}/attention_out/bias", (f"{theirs}.self_attn.out_proj.bias",), SAME)
    yield from norm(f"{ours}/norm_1", f"{theirs}.layer_norm2")
    yield from dense(f"{ours}/expand", f"{theirs}.mlp.fc1")
    yield from dense(f"{ours}/contract", f"{theirs}.mlp.fc2")


def _open_clip_block(ours: str, theirs: str) -> Iterator[Entry]:
    yield from norm(f"{ours}/norm_0", f"{theirs}.ln_1")
    yield Entry(f"{ours}/query_key_value/kernel", (f"{theirs}.attn.in_proj_weight",), heads("3HC"))
    yield Entry(f"{ours}/query_key_value/bias", (f"{theirs}.attn.in_proj_bias",), heads("3HC"))
    yield Entry(f"{ours}/attention_out/kernel", (f"{theirs}.attn.out_proj.weight",), from_heads())
    yield Entry(f"{ours}/attention_out/bias", (f"{theirs}.attn.out_proj.bias",), SAME)
    yield from norm(f"{ours}/norm_1", f"{theirs}.ln_2")
    yield from dense(f"{ours}/expand", f"{theirs}.mlp.c_fc")
    yield from dense(f"{ours}/contract", f"{theirs}.mlp.c_proj")


def _t5_block(ours: str, theirs: str) -> Iterator[Entry]:
    attention, mlp = f"{theirs}.layer.0", f"{theirs}.layer.1"
    yield Entry(f"{ours}/norm_0/scale", (f"{attention}.layer_norm.weight",), SAME)
    keys = tuple(f"{attention}.SelfAttention.{which}.weight" for which in "qkv")
    yield Entry(f"{ours}/query_key_value/kernel", keys, separate_heads())
    yield Entry(f"{ours}/attention_out/kernel", (f"{attention}.SelfAttention.o.weight",), from_heads())
    yield Entry(f"{ours}/norm_1/scale", (f"{mlp}.layer_norm.weight",), SAME)
    yield Entry(f"{ours}/gate/kernel", (f"{mlp}.DenseReluDense.wi_0.weight",), DENSE)
    yield Entry(f"{ours}/contract/kernel", (f"{mlp}.DenseReluDense.wo.weight",), DENSE)


_ENTRIES = {"clip": (_clip, clip_block), "open_clip": (_open_clip, _open_clip_block), "t5": (_t5, _t5_block)}


def _named(tensors: Tensors, prefix: str) -> dict[str, np.ndarray]:
    """The tensors of a text encoder by their names without prefixes; T5's table by one name."""
    found = {}
    for name in tensors:
        short = name.removeprefix(prefix).removeprefix("text_model.")
        if name.startswith(prefix) and not short.startswith(OTHER_TOWERS):
            found[short] = tensors[name]
    tied = found.pop("encoder.embed_tokens.weight", None)
    if tied is not None:
        found.setdefault(TOKENS["t5"], tied)
    return found


def _layout(given: Mapping[str, np.ndarray], *known: str) -> str:
    """The layout of these names, one of `known`."""
    for layout in known:
        if TOKENS[layout] in given:
            return layout
    shown = ", ".join(sorted(given)[:4]) or "none"
    expected = " or ".join(TOKENS[layout] for layout in known)
    raise UserError(
        f"tensors: expected those of a text encoder, with {expected}, got {shown}. Fix: give the file or folder of "
        "the text encoder"
    )


def _layouts(encoder: Encoder) -> tuple[str, ...]:
    return ("t5",) if isinstance(encoder, T5Encoder) else ("clip", "open_clip")


def _count(given: Mapping[str, np.ndarray], layout: str) -> int:
    """The number of blocks. If one between is missing, `to_params` says so."""
    pattern = re.compile(re.escape(BLOCKS[layout]) + r"\.(\d+)\.")
    found = [int(match[1]) for name in given if (match := pattern.match(name))]
    return max(found, default=-1) + 1


def _shape(given: Mapping[str, np.ndarray], name: str) -> tuple[int, int]:
    """The shape of a matrix."""
    found = tuple(given[name].shape) if name in given else None
    if found is None or len(found) != 2:
        got = "no such tensor" if found is None else f"shape {list(found)}"
        raise UserError(
            f"tensors: expected a matrix {name}, got {got}. Fix: give the complete file of the text encoder"
        )
    return found


def _shapes(encoder: Encoder) -> Params:
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    return nn.meta.unbox(jax.eval_shape(encoder.init, jax.random.key(0), ids))["params"]
