"""Tiny IP-Adapters and image encoders with random parameters, and diffusers' U-Nets with them."""

import copy
import functools

import jax.numpy as jnp
import pytest

from tests.controls import draw, nchw, randomise, unet_peer

CONTEXT, VECTOR, HIDDEN = 12, 10, 32
PIXELS = jnp.asarray(draw(2, 8, 8, 3, seed=7))


@functools.cache
def encoder_peer():
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4,
        projection_dim=VECTOR,
    )  # fmt: skip
    return randomise(transformers.CLIPVisionModelWithProjection(config))


def projection_tensors(plus, seed=0):
    """The projection of an IP-Adapter in the names of its file."""
    if not plus:
        shapes = {"proj.weight": (4 * CONTEXT, VECTOR), "proj.bias": (4 * CONTEXT,)}
        shapes |= {"norm.weight": (CONTEXT,), "norm.bias": (CONTEXT,)}
    else:
        shapes = {
            "latents": (1, 5, HIDDEN), "proj_in.weight": (HIDDEN, 16), "proj_in.bias": (HIDDEN,),
            "proj_out.weight": (CONTEXT, HIDDEN), "proj_out.bias": (CONTEXT,),
            "norm_out.weight": (CONTEXT,), "norm_out.bias": (CONTEXT,),
        }  # fmt: skip
        for i in range(4):
            for name in ("0.norm1", "0.norm2", "1.0"):
                shapes |= {f"layers.{i}.{name}.{part}": (HIDDEN,) for part in ("weight", "bias")}
            shapes |= {
                f"layers.{i}.0.to_q.weight": (128, HIDDEN), f"layers.{i}.0.to_kv.weight": (256, HIDDEN),
                f"layers.{i}.0.to_out.weight": (HIDDEN, 128), f"layers.{i}.1.1.weight": (4 * HIDDEN, HIDDEN),
                f"layers.{i}.1.3.weight": (HIDDEN, 4 * HIDDEN),
            }  # fmt: skip
    return {name: 0.3 * draw(*shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}


def adapter_tensors(kind, plus=False, seed=0):
    """An IP-Adapter for a U-Net, in the names of its file."""
    peer, attention = unet_peer(kind), {}
    for i, name in enumerate(peer.attn_processors):
        if "attn2" in name:
            shape = peer.get_submodule(name.removesuffix(".processor")).to_k.weight.shape
            for j, which in enumerate("kv"):
                attention[f"ip_adapter.{i}.to_{which}_ip.weight"] = 0.3 * draw(
                    *shape, seed=1000 * seed + 2 * i + j
                )
    image = {f"image_proj.{name}": value for name, value in projection_tensors(plus, seed).items()}
    return image | attention


def grouped(tensors):
    """An IP-Adapter's tensors in PyTorch, in two levels of names."""
    torch = pytest.importorskip("torch")
    found = {}
    for name, value in tensors.items():
        group, _, rest = name.partition(".")
        found.setdefault(group, {})[rest] = torch.tensor(value)
    return found


def adapted_peer(kind, *adapters, scales):
    """diffusers' U-Net with IP-Adapters."""
    peer = copy.deepcopy(unet_peer(kind))
    peer._load_ip_adapter_weights([grouped(each) for each in adapters], low_cpu_mem_usage=False)
    for name, processor in peer.attn_processors.items():
        if "attn2" in name:
            processor.scale = list(scales)
    return peer.eval()


def peer_encoding(pixels=PIXELS):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return encoder_peer()(nchw(pixels), output_hidden_states=True)


def joined(one, other):
    if not isinstance(one, dict):
        return other
    return one | {name: joined(one.get(name), value) for name, value in other.items()}
