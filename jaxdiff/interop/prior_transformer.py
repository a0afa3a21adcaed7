"""diffusers' `PriorTransformer`: its `config.json` and the names of its tensors.

>>> layout = prior_layout(config)
>>> params = to_params(entries(layout), tensors, shapes_of(denoiser))

The mapping is that of a denoiser whose condition ``text`` has a `PriorText`, and of the statistics of its codec.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from jaxdiff.conditioning.conditioner import parameters_of
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.errors import expect
from jaxdiff.interop.config_fields import COUNT, NUMBER, check, optional
from jaxdiff.interop.mapping import SAME, Entry, dense, from_heads, norm, row, separate_heads
from jaxdiff.models.prior_transformer import PriorTransformer

DEFAULTS: dict[str, Any] = {
    "_class_name": "PriorTransformer", "num_attention_heads": 32, "attention_head_dim": 64, "num_layers": 20,
    "embedding_dim": 768, "num_embeddings": 77, "additional_embeddings": 4, "dropout": 0.0,
    "time_embed_act_fn": "silu", "norm_in_type": None, "embedding_proj_norm_type": None,
    "encoder_hid_proj_type": "linear", "added_emb_type": "prd", "time_embed_dim": None, "embedding_proj_dim": None,
    "clip_embed_dim": None,
}  # fmt: skip
"""Of the fields of `config.json`."""

KINDS = {
    **dict.fromkeys(
        ("num_attention_heads", "attention_head_dim", "num_layers", "embedding_dim", "num_embeddings"), COUNT
    ),
    **dict.fromkeys(("time_embed_dim", "embedding_proj_dim", "clip_embed_dim"), optional(COUNT)),
    "dropout": NUMBER,
}
FIXED: dict[str, tuple] = {
    "_class_name": ("PriorTransformer",), "additional_embeddings": (4,), "dropout": (0, 0.0),
    "time_embed_act_fn": ("silu", "swish"), "norm_in_type": (None,), "embedding_proj_norm_type": (None,),
    "encoder_hid_proj_type": ("linear",), "added_emb_type": ("prd",),
}  # fmt: skip
"""Fields of which ours has these values only."""

STATISTICS = "statistics"
"""The part of the mapping that belongs to the codec."""

TEXT = f"conditioner/{parameters_of('text')}"


@dataclasses.dataclass(frozen=True)
class PriorLayout:
    """A published prior.

    Attributes:
      network: the network.
      noise: the conditioner's module of the noise level.
      dim: length of the embeddings that are denoised.
      text_width: channels of the states of a text, and of its embedding.
      length: ids of a text.
    """

    network: PriorTransformer
    noise: NoiseLevel
    dim: int
    text_width: int
    length: int


def prior_layout(config: Mapping[str, Any]) -> PriorLayout:
    """The layout that a `config.json` describes.

    Raises:
      UserError: it is another class, or has an option that ours lacks.
    """
    check(config, KINDS, "config.json of the prior")
    given = DEFAULTS | {name: value for name, value in config.items() if name in DEFAULTS}
    for field, known in FIXED.items():
        expect(given[field] in known, field, given[field], " or ".join(map(repr, known)), "use such a prior")
    width, dim = given["num_attention_heads"] * given["attention_head_dim"], given["embedding_dim"]
    for field, same in (("time_embed_dim", width), ("embedding_proj_dim", dim), ("clip_embed_dim", dim)):
        expect(given[field] in (None, same), field, given[field], f"null or {same}", "use such a prior")
    expect(
        width % 2 == 0, "attention_head_dim", given["attention_head_dim"], "an even width", "use such a prior"
    )
    network = PriorTransformer(width, given["num_layers"], given["num_attention_heads"])
    return PriorLayout(network, NoiseLevel(width, frequencies=width // 2), dim, dim, given["num_embeddings"])


def prior_config(layout: PriorLayout) -> dict[str, Any]:
    """The `config.json` of a layout: the inverse of `prior_layout`."""
    network = layout.network
    return DEFAULTS | {
        "num_attention_heads": network.heads, "attention_head_dim": network.width // network.heads,
        "num_layers": network.layers, "embedding_dim": layout.dim, "num_embeddings": layout.length,
    }  # fmt: skip


def entries(layout: PriorLayout) -> Iterator[Entry]:
    """The mapping of the tensors."""
    yield from dense("conditioner/noise/dense_0", "time_embedding.linear_1")
    yield from dense("conditioner/noise/dense_1", "time_embedding.linear_2")
    yield from dense(f"{TEXT}/states", "encoder_hidden_states_proj")
    yield from dense(f"{TEXT}/embedding", "embedding_proj")
    yield from dense("network/enter", "proj_in")
    yield from dense("network/leave", "proj_to_clip_embeddings")
    yield from norm("network/norm", "norm_out")
    yield Entry("network/position_embedding", ("positional_embedding",), row(1))
    yield Entry("network/query", ("prd_embedding",), row(1))
    for i in range(layout.network.layers):
        yield from _block(f"network/block_{i}", f"transformer_blocks.{i}")
    for name in ("mean", "std"):
        yield Entry(f"{STATISTICS}/{name}", (f"clip_{name}",), row(1))


def _block(ours: str, theirs: str) -> Iterator[Entry]:
    yield from norm(f"{ours}/norm_0", f"{theirs}.norm1")
    for kind, name in (("kernel", "weight"), ("bias", "bias")):
        keys = tuple(f"{theirs}.attn1.to_{which}.{name}" for which in "qkv")
        yield Entry(f"{ours}/query_key_value/{kind}", keys, separate_heads())
    yield Entry(f"{ours}/attention_out/kernel", (f"{theirs}.attn1.to_out.0.weight",), from_heads())
    yield Entry(f"{ours}/attention_out/bias", (f"{theirs}.attn1.to_out.0.bias",), SAME)
    yield from norm(f"{ours}/norm_1", f"{theirs}.norm3")
    yield from dense(f"{ours}/expand", f"{theirs}.ff.net.0.proj")
    yield from dense(f"{ours}/contract", f"{theirs}.ff.net.2")
