"""Names of spatial transformers' tensors, which latent diffusion's single files and diffusers' folders share."""

from collections.abc import Iterator

from jaxdiff.interop.mapping import SAME, Entry, conv, dense, from_heads, norm, separate_heads
from jaxdiff.models.spatial_transformer import SpatialTransformer


def entries(ours: str, theirs: str, part: SpatialTransformer) -> Iterator[Entry]:
    """The mapping of one `SpatialTransformer`.

    Args:
      ours: path of its parameters, ".../transformer".
      theirs: prefix of the tensors' names, "....attentions.0" in diffusers.
      part: its options.
    """
    project = dense if part.linear_projection else conv
    yield from norm(f"{ours}/norm", f"{theirs}.norm")
    yield from project(f"{ours}/proj_in", f"{theirs}.proj_in")
    yield from project(f"{ours}/proj_out", f"{theirs}.proj_out")
    for i in range(part.depth):
        yield from _block(f"{ours}/block_{i}", f"{theirs}.transformer_blocks.{i}", part)


def _block(ours: str, theirs: str, part: SpatialTransformer) -> Iterator[Entry]:
    yield from norm(f"{ours}/norm_0", f"{theirs}.norm1")
    if part.only_cross_attention:
        yield _to_heads(f"{ours}/attention_query", f"{theirs}.attn1", "q")
        yield _to_heads(f"{ours}/attention_key_value", f"{theirs}.attn1", "kv")
    else:
        yield _to_heads(f"{ours}/query_key_value", f"{theirs}.attn1", "qkv")
    yield from _out(f"{ours}/attention_out", f"{theirs}.attn1.to_out.0")
    if part.cross_attention:
        yield from norm(f"{ours}/norm_tokens", f"{theirs}.norm2")
        yield _to_heads(f"{ours}/query", f"{theirs}.attn2", "q")
        yield _to_heads(f"{ours}/key_value", f"{theirs}.attn2", "kv")
        yield from _out(f"{ours}/cross_out", f"{theirs}.attn2.to_out.0")
    yield from norm(f"{ours}/norm_1", f"{theirs}.norm3")
    yield from dense(f"{ours}/expand", f"{theirs}.ff.net.0.proj")
    yield from dense(f"{ours}/contract", f"{theirs}.ff.net.2")


def _to_heads(ours: str, theirs: str, which: str) -> Entry:
    return Entry(f"{ours}/kernel", tuple(f"{theirs}.to_{name}.weight" for name in which), separate_heads())


def _out(ours: str, theirs: str) -> Iterator[Entry]:
    yield Entry(f"{ours}/kernel", (f"{theirs}.weight",), from_heads())
    yield Entry(f"{ours}/bias", (f"{theirs}.bias",), SAME)
