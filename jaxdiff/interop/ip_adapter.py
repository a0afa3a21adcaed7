"""IP-Adapters in the names of their files: ``image_proj.*`` and ``ip_adapter.N.to_k_ip.weight``.

>>> adapter = ip_adapter(network, read_all_tensors("ip-adapter_sd15.bin"), "image")
>>> adapter.projection, adapter.projection_params  # for `PromptImage`
>>> adapter.network_params  # keys and values, which join the parameters of the U-Net
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import UserError
from jaxdiff.interop.mapping import (
    DENSE,
    Entry,
    Layout,
    Tensors,
    dense,
    from_heads,
    heads,
    norm,
    separate_heads,
    to_params,
)
from jaxdiff.interop.structure import modules
from jaxdiff.models.attention import head_count
from jaxdiff.models.ip_adapter import HEAD_DIM, ImageProjection, Resampler
from jaxdiff.models.spatial_transformer import SpatialTransformer
from jaxdiff.models.unet import UNet
from jaxdiff.typing import Params

Projection = ImageProjection | Resampler

OTHERS = {
    "proj.3.weight": "full-face",
    "perceiver_resampler.proj_in.weight": "FaceID plus",
    "proj.0.weight": "FaceID",
}
"""Projections that are not supported, by a tensor that only they have."""


@dataclasses.dataclass(frozen=True)
class IpAdapter:
    """A published IP-Adapter.

    Attributes:
      projection: module from the image encoder's outputs to tokens.
      projection_params: its parameters.
      network_params: the adapter's keys and values, in the tree of the U-Net's parameters.
    """

    projection: Projection
    projection_params: Params
    network_params: Params


def ip_adapter(network: UNet, tensors: Tensors, adapter: str = "image") -> IpAdapter:
    """Read the IP-Adapter of a file.

    Args:
      network: the U-Net of the model that it was made for.
      tensors: arrays by name, as `jaxdiff.interop.tensors.read_all_tensors` returns them.
      adapter: the name of the adapter, as in `PromptImage.adapter`.

    Raises:
      UserError: the projection is not supported, or a list of every tensor that is missing, unexpected or of another
        shape.
    """
    image = {
        name.removeprefix("image_proj."): tensors[name] for name in tensors if name.startswith("image_proj.")
    }
    rest = {name: tensors[name] for name in tensors if not name.startswith("image_proj.")}
    projection, encoded = _projection(image)
    shapes = nn.meta.unbox(jax.eval_shape(projection.init, jax.random.key(0), encoded))["params"]
    return IpAdapter(
        projection,
        to_params(_projection_entries(projection), image, shapes),
        to_params(
            attention_entries(network, adapter), rest, _attention_shapes(network, adapter, projection.width)
        ),
    )


def attention_entries(network: UNet, adapter: str) -> Iterator[Entry]:
    """The mapping of an adapter's keys and values, relative to the U-Net's parameters."""
    for number, (path, _, _) in enumerate(_cross_attentions(network)):
        keys = tuple(f"ip_adapter.{2 * number + 1}.to_{which}_ip.weight" for which in "kv")
        yield Entry(f"{path}/key_value_{adapter}/kernel", keys, separate_heads())


def _cross_attentions(network: UNet) -> Iterator[tuple[str, int, int]]:
    """Paths of all blocks with cross-attention with their heads and head sizes, in the order of diffusers' processors.

    That is the encoder, the decoder and then the middle. Each has a self-attention before it, which takes the even
    numbers.
    """
    found = [module for module in modules(network) if isinstance(module.attention, SpatialTransformer)]
    for module in sorted(found, key=lambda module: module.kind == "middle"):
        part: Any = module.attention
        width = network.levels[module.level].width
        count = head_count(width, part.heads, part.head_dim)
        for i in range(part.depth if part.cross_attention else 0):
            yield f"{module.name}/transformer/block_{i}", count, width // count


def _attention_shapes(network: UNet, adapter: str, context: int) -> Params:
    shapes = {
        f"{path}/key_value_{adapter}/kernel": jax.ShapeDtypeStruct((context, 2, count, size), np.float32)
        for path, count, size in _cross_attentions(network)
    }
    return unflatten_dict(shapes, sep="/")


def _projection(image: Mapping[str, np.ndarray]) -> tuple[Projection, Embeddings]:
    """The projection of a file, and an example of its input."""
    if "proj.weight" in image and "norm.weight" in image:
        (out, size), width = image["proj.weight"].shape, image["norm.weight"].shape[0]
        return ImageProjection(width, out // width), Embeddings(vector=jnp.zeros((1, size)))
    needed = ("latents", "proj_in.weight", "proj_out.weight", "layers.0.0.to_q.weight", "layers.0.1.1.weight")
    if all(name in image for name in needed):
        _, tokens, hidden = image["latents"].shape
        blocks = {match[1] for name in image if (match := re.match(r"layers\.(\d+)\.", name))}
        projection = Resampler(
            image["proj_out.weight"].shape[0],
            tokens,
            hidden,
            len(blocks),
            image["layers.0.0.to_q.weight"].shape[0] // HEAD_DIM,
            expansion=image["layers.0.1.1.weight"].shape[0] // hidden,
        )
        states = jnp.zeros((1, 1, image["proj_in.weight"].shape[1]))
        return projection, Embeddings(tokens=Tokens(states, jnp.ones((1, 1), bool)))
    kind = next((kind for name, kind in OTHERS.items() if name in image), "another projection")
    shown = ", ".join(sorted(image)[:4]) or "none"
    raise UserError(
        f"tensors: expected an IP-Adapter, or IP-Adapter plus, got {kind}: image_proj with {shown}. "
        "Fix: use an IP-Adapter with image_proj.proj.weight or image_proj.latents"
    )


def _projection_entries(projection: Projection) -> Iterator[Entry]:
    if isinstance(projection, ImageProjection):
        yield from dense("project", "proj")
        yield from norm("norm", "norm")
        return
    yield Entry("latents", ("latents",), _FIRST)
    yield from dense("proj_in", "proj_in")
    yield from dense("proj_out", "proj_out")
    yield from norm("norm", "norm_out")
    for i in range(projection.blocks):
        ours, theirs = f"block_{i}", f"layers.{i}"
        yield from norm(f"{ours}/norm_image", f"{theirs}.0.norm1")
        yield from norm(f"{ours}/norm_latents", f"{theirs}.0.norm2")
        yield Entry(f"{ours}/query/kernel", (f"{theirs}.0.to_q.weight",), heads("3HC"))
        yield Entry(f"{ours}/key_value/kernel", (f"{theirs}.0.to_kv.weight",), heads("3HC"))
        yield Entry(f"{ours}/attention_out/kernel", (f"{theirs}.0.to_out.weight",), from_heads())
        yield from norm(f"{ours}/norm_mlp", f"{theirs}.1.0")
        yield Entry(f"{ours}/expand/kernel", (f"{theirs}.1.1.weight",), DENSE)
        yield Entry(f"{ours}/contract/kernel", (f"{theirs}.1.3.weight",), DENSE)


_FIRST = Layout(lambda tensors, shape: tensors[0][0], lambda array: [array[None]])
"""[1, tokens, channels] -> [tokens, channels]"""
