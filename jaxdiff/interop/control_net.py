"""ControlNets in the names of diffusers and of the original files (Zhang et al. 2023).

>>> network = control_net(denoiser, tensors)  # the denoiser of the model that it was made for
>>> params = control_net_params(network, tensors)
>>> control_net_tensors(network, params, "original")

A ControlNet copies the encoder of its model, whose options no file repeats. Depths of transformers and the widths of
the hint encoder follow from the tensors.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.denoiser import Denoiser
from jaxdiff.embeddings import Embeddings, Tokens, VectorInputs
from jaxdiff.errors import UserError, expect
from jaxdiff.interop import diffusers, guided_diffusion
from jaxdiff.interop.mapping import Entry, Tensors, conv, dense, to_params, to_tensors
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.control_net import ControlNet, uncontrolled
from jaxdiff.models.spatial_transformer import SpatialTransformer
from jaxdiff.models.unet import UNet
from jaxdiff.typing import Params

Naming = Literal["diffusers", "original"]

PREFIX = "control_model."
"""First part of the names in original files, which may hold the whole model besides."""

STEMS: dict[Naming, str] = {"diffusers": "conv_in.weight", "original": "input_blocks.0.0.weight"}
MAPPINGS: dict[Naming, str] = {"diffusers": "add_embedding.linear_{}", "original": "label_emb.0.{}"}
UNSUPPORTED: dict[str, tuple] = {
    "global_pool_conditions": (False, None),
    "controlnet_conditioning_channel_order": ("rgb", None),
    "class_embed_type": (None,),
    "encoder_hid_dim_type": (None,),
}
"""Options of diffusers' config.json that no tensor shows, and their only values here."""


def control_net(denoiser: Denoiser, tensors: Tensors, config: Mapping[str, Any] | None = None) -> ControlNet:
    """The ControlNet of a file.

    Args:
      denoiser: of the model that it was made for.
      tensors: arrays by name; only shapes are read.
      config: `config.json` of diffusers, for options that no tensor shows.

    Raises:
      UserError: the names are those of no ControlNet, or it has an option that is not supported.
    """
    for field, known in UNSUPPORTED.items():
        value = (config or {}).get(field)
        expect(value in known, field, value, f"{known[0]!r}", "use another ControlNet")
    given, naming = _named(tensors)
    base, conditioner = uncontrolled(denoiser.network), denoiser.conditioner
    if not isinstance(base, UNet):
        raise UserError(
            f"network={type(base).__name__}: expected a model with a UNet, got {type(base).__name__}. "
            "Fix: use the model that the ControlNet was made for"
        )
    base = _fitted(base, given) if naming == "diffusers" else base
    convs = [given[f"{name}.weight"].shape[0] for name in _hint_names(given, naming)]
    return ControlNet(base, conditioner.noise, conditioner.mapping, tuple(convs[:-1:2]))


def control_net_params(network: ControlNet, tensors: Tensors) -> Params:
    """The parameters, float32, from a file's tensors in either naming.

    Raises:
      UserError: lists every tensor that is missing, unexpected or of another shape.
    """
    given, naming = _named(tensors)
    return to_params(entries(network, naming), given, _shapes(network, given, naming))


def control_net_tensors(
    network: ControlNet, params: Params, naming: Naming = "diffusers"
) -> dict[str, np.ndarray]:
    """A file's tensors from the parameters: the inverse of `control_net_params`."""
    prefix = PREFIX if naming == "original" else ""
    return {f"{prefix}{name}": array for name, array in to_tensors(entries(network, naming), params).items()}


def entries(network: ControlNet, naming: Naming = "diffusers") -> Iterator[Entry]:
    """The mapping of the parameters to names without a prefix."""
    unet = network.network
    named = diffusers.entries(unet) if naming == "diffusers" else guided_diffusion.entries(unet, "3HC")
    for entry in named:
        path = re.sub("^(network|conditioner)/", "", entry.path)
        if not path.startswith(("decoder_", "up_", "head", "parts_")):
            yield dataclasses.replace(entry, path=path)
    for i in range(2):
        number = i + 1 if naming == "diffusers" else 2 * i
        yield from dense(f"mapping/dense_{i}", MAPPINGS[naming].format(number))
    yield from _hint(len(network.hint_widths), naming)
    zero, middle = {
        "diffusers": ("controlnet_down_blocks.{}", "controlnet_mid_block"),
        "original": ("zero_convs.{}.0", "middle_block_out.0"),
    }[naming]
    *joined, _ = unet.places()
    for i, place in enumerate(joined):
        yield from conv(f"zero_{place}", zero.format(i))
    yield from conv("zero_middle", middle)


def _hint(widths: int, naming: Naming) -> Iterator[Entry]:
    inner = [f"block_{i}_{kind}" for i in range(widths - 1) for kind in ("conv", "down")]
    for i, ours in enumerate(["conv_in", *inner, "conv_out"]):
        yield from conv(f"hint/{ours}", _hint_name(i, 2 * widths, naming))


def _hint_name(number: int, count: int, naming: Naming) -> str:
    """The name of one of `count` convolutions of the hint encoder."""
    if naming == "original":
        return f"input_hint_block.{2 * number}"
    ends = {0: "conv_in", count - 1: "conv_out"}
    return f"controlnet_cond_embedding.{ends.get(number, f'blocks.{number - 1}')}"


def _hint_names(given: Tensors, naming: Naming) -> list[str]:
    """The convolutions of the hint encoder that a file has, in order."""
    first = _hint_name(0, 4, naming).rpartition(".")[0]
    count = sum(name.startswith(f"{first}.") and name.endswith(".weight") for name in given)
    names = [_hint_name(i, count, naming) for i in range(count)]
    complete = count >= 2 and count % 2 == 0 and all(f"{name}.weight" in given for name in names)
    fix = "give the complete file of a ControlNet"
    expect(complete, "tensors", first, "the convolutions of a hint encoder", fix, f"{count} convolutions")
    return names


def _named(tensors: Tensors) -> tuple[dict[str, np.ndarray], Naming]:
    """The tensors of the ControlNet by their names without a prefix, and the naming."""
    inside = [name for name in tensors if name.startswith(PREFIX)]
    given = {name.removeprefix(PREFIX): tensors[name] for name in inside or tensors}
    for naming, stem in STEMS.items():
        if stem in given and any("control" in name or "hint" in name for name in given):
            return given, naming
    shown = ", ".join(sorted(tensors)[:4]) or "none"
    raise UserError(
        f"tensors: expected those of a ControlNet, {' or '.join(STEMS.values())} among them, got {shown}. "
        "Fix: give the file of a ControlNet"
    )


def _fitted(network: UNet, given: Tensors) -> UNet:
    """The network with the transformers of the file, which may be fewer (ControlNet "mid" of SDXL)."""
    second = "mid_block.resnets.1.norm1.weight"
    expect(
        second in given,
        "tensors",
        second,
        "two residual blocks in the middle",
        "use another ControlNet",
        "one",
    )
    levels = tuple(
        dataclasses.replace(level, attention=_part(level.attention, given, f"down_blocks.{i}"))
        for i, level in enumerate(network.levels)
    )
    middle = network.middle
    if isinstance(middle, ResidualMiddle):
        middle = dataclasses.replace(middle, attention=_part(middle.attention, given, "mid_block"))
    return network.clone(levels=levels, middle=middle)


def _part(part: Any, given: Tensors, block: str) -> Any:
    """The attention of a block with the depth in the file."""
    pattern = re.compile(rf"{re.escape(block)}\.attentions\.0\.transformer_blocks\.(\d+)\.norm1\.weight")
    depth = sum(pattern.fullmatch(name) is not None for name in given)
    if not isinstance(part, SpatialTransformer):
        return part
    return dataclasses.replace(part, depth=depth) if depth else None


def _shapes(network: ControlNet, given: Tensors, naming: Naming) -> Params:
    """The shapes of the parameters, for as many channels of the inputs as the file has."""
    channels = given[STEMS[naming]].shape[1]
    image_channels = given[f"{_hint_names(given, naming)[0]}.weight"].shape[1]
    keys = [array for name, array in given.items() if name.endswith("attn2.to_k.weight")]
    pooled = given.get(f"{MAPPINGS[naming].format(1 if naming == 'diffusers' else 0)}.weight")
    unet = network.network
    side = unet.patch * 2 ** (len(unet.levels) - 1)

    def init() -> Params:
        tokens = Tokens(jnp.zeros((1, 1, keys[0].shape[1])), jnp.ones((1, 1), bool)) if keys else None
        # A model without a mapping does not read these vectors; `to_params` reports missing ones and unused ones.
        width = None if network.mapping is None else (1 if pooled is None else pooled.shape[1])
        inputs = VectorInputs(jnp.zeros(1), None if width is None else jnp.zeros((1, width)))
        image = jnp.zeros((1, network.factor * side, network.factor * side, image_channels))
        x = jnp.zeros((1, side, side, channels))
        read = Embeddings(tokens=tokens, vector_inputs=inputs)
        return network.init(jax.random.key(0), x, read, image, train=False)

    return nn.meta.unbox(jax.eval_shape(init))["params"]
