"""Parameter names of guided-diffusion, ADM's published checkpoints (Dhariwal & Nichol 2021).

Latent diffusion's code (Rombach et al. 2022) began as a copy of it: the original files of Stable Diffusion have the
same names, with transformers where ADM has attention.
"""

from collections.abc import Iterator

from jaxdiff.interop import spatial_transformer
from jaxdiff.interop.mapping import SAME, Entry, conv, dense, from_heads, heads, norm
from jaxdiff.interop.structure import modules
from jaxdiff.models.spatial_transformer import SpatialTransformer
from jaxdiff.models.unet import UNet


def entries(network: UNet, order: str, label: str = "label") -> Iterator[Entry]:
    """The mapping for a `Denoiser` with this network.

    Args:
      network: the denoiser's network.
      order: order of the rows of queries, keys and values: "3HC" with `use_new_attention_order`, else "H3C".
      label: name of the class condition, if there is one.
    """
    yield from dense("conditioner/noise/dense_0", "time_embed.0")
    yield from dense("conditioner/noise/dense_1", "time_embed.2")
    yield Entry(f"conditioner/parts_{label}/table", ("label_emb.weight",), SAME)
    taken, attended = 0, False
    for module in modules(network):
        ours = f"network/{module.name}"
        if module.kind in ("stem", "encoder", "down"):
            theirs = f"input_blocks.{taken}"
            taken += 1
        elif module.kind == "middle":
            # The block before the attention and the one after it are numbers 0 and 2.
            theirs, taken = "middle_block", 0
        elif module.kind == "decoder":
            theirs, attended = f"output_blocks.{taken}", module.attention is not None
            taken += 1
        elif module.kind == "up":  # in the list of the last block of its level, after that block's attention
            theirs = f"output_blocks.{taken - 1}"

        if module.kind == "stem":
            yield from conv(ours, f"{theirs}.0")
        elif module.kind == "head":
            yield from norm("network/head_norm", "out.0")
            yield from conv("network/head", "out.2")
        elif module.kind == "middle" and module.index == 1:
            yield from _residual(ours, f"{theirs}.2")
        elif module.kind in ("down", "up"):
            at = 0 if module.kind == "down" else 1 + int(attended)
            yield from _residual(ours, f"{theirs}.{at}")
            yield from conv(f"{ours}/conv", f"{theirs}.{at}.{'op' if module.kind == 'down' else 'conv'}")
        else:
            yield from _residual(ours, f"{theirs}.0")
            if isinstance(module.attention, SpatialTransformer):
                yield from spatial_transformer.entries(f"{ours}/transformer", f"{theirs}.1", module.attention)
            else:
                yield from _attention(ours, f"{theirs}.1", order)


def _residual(ours: str, theirs: str) -> Iterator[Entry]:
    ours = f"{ours}/residual"
    yield from norm(f"{ours}/norm_0", f"{theirs}.in_layers.0")
    yield from conv(f"{ours}/conv_0", f"{theirs}.in_layers.2")
    yield from dense(f"{ours}/modulation", f"{theirs}.emb_layers.1")
    yield from norm(f"{ours}/norm_1", f"{theirs}.out_layers.0")
    yield from conv(f"{ours}/conv_1", f"{theirs}.out_layers.3")
    yield from conv(f"{ours}/skip", f"{theirs}.skip_connection")


def _attention(ours: str, theirs: str, order: str) -> Iterator[Entry]:
    ours = f"{ours}/self_attention"
    yield from norm(f"{ours}/norm", f"{theirs}.norm")
    yield Entry(f"{ours}/query_key_value/kernel", (f"{theirs}.qkv.weight",), heads(order, axes=1))
    yield Entry(f"{ours}/query_key_value/bias", (f"{theirs}.qkv.bias",), heads(order))
    yield Entry(f"{ours}/out/kernel", (f"{theirs}.proj_out.weight",), from_heads(axes=1))
    yield Entry(f"{ours}/out/bias", (f"{theirs}.proj_out.bias",), SAME)
