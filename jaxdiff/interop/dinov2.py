"""DINOv2 in the names of transformers and of the original files.

>>> network = dinov2_network(tensors)
>>> params = dinov2_params(network, tensors)

Sizes follow from the shapes of the tensors. Heads have 64 channels in all published models.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

import flax.linen as nn
import jax
import numpy as np

from jaxdiff.errors import UserError
from jaxdiff.interop.clip_vision import PATCH
from jaxdiff.interop.mapping import (
    SAME,
    Entry,
    Layout,
    Tensors,
    dense,
    from_heads,
    heads,
    norm,
    separate_heads,
    simple,
    to_params,
    to_tensors,
)
from jaxdiff.models.dinov2 import Dinov2
from jaxdiff.typing import Params

HEAD_DIM = 64
"""Channels of an attention head in every published model."""

BUFFERS = ("mask_token",)
"""Last parts of names that have no part in features: the token of masked patches, for training."""

WRAPPERS = ("dinov2.", "dinov2_with_registers.", "backbone.")
"""First parts of names in files of models that have DINOv2 inside."""

LEADING = simple(lambda x: x[0], lambda x: x[None])
"""[1, tokens, channels] -> [tokens, channels]"""

Names = Mapping[str, str]

TRANSFORMERS: Names = {
    "class": "embeddings.cls_token", "registers": "embeddings.register_tokens",
    "positions": "embeddings.position_embeddings", "patches": "embeddings.patch_embeddings.projection",
    "norm": "layernorm", "block": "encoder.layer", "scale_0": "layer_scale1.lambda1", "scale_1": "layer_scale2.lambda1",
    "query": "attention.attention.query", "key": "attention.attention.key", "value": "attention.attention.value",
    "out": "attention.output.dense",
}  # fmt: skip
NEWER: Names = dict(TRANSFORMERS) | {
    "query": "attention.q_proj", "key": "attention.k_proj", "value": "attention.v_proj", "out": "attention.o_proj",
}  # fmt: skip
ORIGINAL: Names = {
    "class": "cls_token", "registers": "register_tokens", "positions": "pos_embed", "patches": "patch_embed.proj",
    "norm": "norm", "block": "blocks", "scale_0": "ls1.gamma", "scale_1": "ls2.gamma",
    "query_key_value": "attn.qkv", "out": "attn.proj",
}  # fmt: skip
LAYOUTS = {"transformers": TRANSFORMERS, "transformers 5": NEWER, "original": ORIGINAL}
"""Names in the published files of transformers, in the modules of its version 5, and in the authors' files."""


def dinov2_network(tensors: Tensors) -> Dinov2:
    """The network of the sizes in a file.

    Args:
      tensors: arrays by name; only shapes are read.

    Raises:
      UserError: the names are not those of DINOv2 with MLPs: ViT-S, ViT-B or ViT-L.
    """
    given, names = _named(tensors)
    hidden, width = given[f"{names['block']}.0.mlp.fc1.weight"].shape
    patch = given[f"{names['patches']}.weight"].shape[-1]
    blocks = [int(match[1]) for name in given if (match := re.match(rf"{names['block']}\.(\d+)\.", name))]
    registers = given[names["registers"]].shape[1] if names["registers"] in given else 0
    return Dinov2(
        width=width,
        layers=max(blocks) + 1,
        heads=max(width // HEAD_DIM, 1),
        hidden=hidden,
        registers=registers,
        image_size=patch * round((given[names["positions"]].shape[1] - 1) ** 0.5),
        patch=patch,
    )


def dinov2_params(network: Dinov2, tensors: Tensors) -> Params:
    """The network's parameters, float32.

    Raises:
      UserError: lists every tensor that is missing, unexpected or of another shape.
    """
    given, names = _named(tensors)
    return to_params(entries(network, names), given, parameter_shapes(network), BUFFERS)


def dinov2_tensors(network: Dinov2, params: Params, layout: str = "transformers") -> dict[str, np.ndarray]:
    """A file's tensors from the network's parameters, in a layout of `LAYOUTS`: the inverse of `dinov2_params`."""
    return to_tensors(entries(network, LAYOUTS[layout]), params)


def parameter_shapes(network: Dinov2) -> Params:
    """The shapes of the network's parameters."""
    pixels = jax.ShapeDtypeStruct((1, network.image_size, network.image_size, 3), np.float32)
    return nn.meta.unbox(jax.eval_shape(network.init, jax.random.key(0), pixels))["params"]


def entries(network: Dinov2, names: Names) -> Iterator[Entry]:
    """The mapping of the parameters to the names of a layout, without prefixes."""
    yield Entry("class_embedding", (names["class"],), LEADING)
    yield Entry("register_embedding", (names["registers"],), LEADING)
    yield Entry("position_embedding", (names["positions"],), LEADING)
    yield Entry("patch_embedding/kernel", (f"{names['patches']}.weight",), PATCH)
    yield Entry("patch_embedding/bias", (f"{names['patches']}.bias",), SAME)
    yield from norm("norm", names["norm"])
    for i in range(network.layers):
        yield from _block(f"block_{i}", f"{names['block']}.{i}", names)


def _block(ours: str, theirs: str, names: Names) -> Iterator[Entry]:
    parts, layout = _query_key_value(names)
    for kind, name in (("kernel", "weight"), ("bias", "bias")):
        keys = tuple(f"{theirs}.{part}.{name}" for part in parts)
        yield Entry(f"{ours}/query_key_value/{kind}", keys, layout)
    yield Entry(f"{ours}/attention_out/kernel", (f"{theirs}.{names['out']}.weight",), from_heads())
    yield Entry(f"{ours}/attention_out/bias", (f"{theirs}.{names['out']}.bias",), SAME)
    for i in (0, 1):
        yield from norm(f"{ours}/norm_{i}", f"{theirs}.norm{i + 1}")
        yield Entry(f"{ours}/scale_{i}", (f"{theirs}.{names[f'scale_{i}']}",), SAME)
    yield from dense(f"{ours}/expand", f"{theirs}.mlp.fc1")
    yield from dense(f"{ours}/contract", f"{theirs}.mlp.fc2")


def _query_key_value(names: Names) -> tuple[Sequence[str], Layout]:
    """The names of queries, keys and values, and how they are stored: in one tensor, or in three."""
    if "query_key_value" in names:
        return [names["query_key_value"]], heads("3HC")
    return [names[part] for part in ("query", "key", "value")], separate_heads()


def _named(tensors: Tensors) -> tuple[dict[str, np.ndarray], Names]:
    """The tensors of DINOv2 by their names without a prefix, and the names of their layout."""
    for prefix in ("", *WRAPPERS):
        given = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
        for names in LAYOUTS.values():
            marks = (f"{names['block']}.0.{names['out']}.weight", f"{names['block']}.0.mlp.fc1.weight")
            if all(mark in given for mark in (names["positions"], f"{names['patches']}.weight", *marks)):
                return given, names
    shown = ", ".join(sorted(tensors)[:4]) or "none"
    raise UserError(
        "tensors: expected those of DINOv2, cls_token and blocks.0.mlp.fc1.weight or their names in transformers "
        f"among them, got {shown}. Fix: give the file of ViT-S, ViT-B or ViT-L, such as dinov2_vitl14_pretrain.pth"
    )
