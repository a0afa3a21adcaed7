"""T2I-Adapters in the names of diffusers.

>>> adapter = t2i_adapter(tensors)
>>> params = t2i_adapter_params(adapter, tensors)
>>> places = places_of(network, adapter)
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UserError, expect
from jaxdiff.interop.mapping import SAME, Entry, Layout, Tensors, conv, to_params, to_tensors
from jaxdiff.models.t2i_adapter import AdapterStage, T2IAdapter
from jaxdiff.models.unet import UNet
from jaxdiff.typing import Params

PREFIX = "adapter."
PATCHES = {64: 8, 192: 8, 256: 16, 768: 16}
"""Side of a patch by the channels of patches, in published adapters for grey and for RGB images."""

KINDS = ("full_adapter", "light_adapter", "full_adapter_xl")


def t2i_adapter(tensors: Tensors, config: Mapping[str, Any] | None = None) -> T2IAdapter:
    """The T2I-Adapter of a file.

    Args:
      tensors: arrays by name; only shapes are read.
      config: `config.json` of diffusers. Without it, patches of 16 pixels are those of SDXL's adapters.

    Raises:
      UserError: the names are those of no T2I-Adapter, or patches have an unusual size.
    """
    given = _named(tensors)
    light = "body.0.out_conv.weight" in given
    outer = "out_conv" if light else "resnets.0.block2"
    stages = _count(given, r"body\.(\d+)\.resnets\..*")
    channels = given["body.0.in_conv.weight" if light else "conv_in.weight"].shape[1]
    settings = config or {}
    patch = settings.get("downscale_factor") or PATCHES.get(channels)
    if patch is None:
        raise UserError(
            f"tensors: expected patches of {' or '.join(map(str, PATCHES))} channels, got {channels}. "
            "Fix: give the config.json of the adapter"
        )
    kind = settings.get("adapter_type") or KINDS[2 if patch == 16 else int(light)]
    expect(kind in KINDS, "adapter_type", kind, " or ".join(KINDS), "use such an adapter")
    down = (2,) if kind == "full_adapter_xl" else range(1, stages)
    return T2IAdapter(
        tuple(AdapterStage(given[f"body.{i}.{outer}.weight"].shape[0], i in down) for i in range(stages)),
        patch,
        _count(given, r"body\.0\.resnets\.(\d+)\..*"),
        light,
    )


def t2i_adapter_params(adapter: T2IAdapter, tensors: Tensors) -> Params:
    """The parameters, float32, from a file's tensors.

    Raises:
      UserError: lists every tensor that is missing, unexpected or of another shape.
    """
    given = _named(tensors)
    channels = given["body.0.in_conv.weight" if adapter.light else "conv_in.weight"].shape[1]
    side = adapter.patch * 2 ** len(adapter.stages)
    image = jnp.zeros((1, side, side, channels // adapter.patch**2))
    shapes = nn.meta.unbox(jax.eval_shape(adapter.init, jax.random.key(0), image))["params"]
    return to_params(entries(adapter), given, shapes)


def t2i_adapter_tensors(adapter: T2IAdapter, params: Params) -> dict[str, np.ndarray]:
    """A file's tensors from the parameters: the inverse of `t2i_adapter_params`."""
    return {f"{PREFIX}{name}": array for name, array in to_tensors(entries(adapter), params).items()}


def places_of(network: UNet, adapter: T2IAdapter) -> tuple[str, ...]:
    """Where diffusers adds the adapter's features, one place for each stage.

    A level with attention receives them behind its last block; a level without, behind its downsampling. Features that
    are left go to the middle.

    Raises:
      UserError: the adapter has more stages than the network has places.
    """
    last = len(network.levels) - 1
    places = [
        f"encoder_{i}_block_{level.blocks - 1}" if level.attention is not None or i == last else f"down_{i}"
        for i, level in enumerate(network.levels)
    ]
    places.append("middle")
    count = len(adapter.stages)
    fix = "use an adapter that was made for this model"
    expect(count <= len(places), "stages", count, f"at most {len(places)}, the places of this model", fix)
    return tuple(places[:count])


def entries(adapter: T2IAdapter) -> Iterator[Entry]:
    """The mapping of the parameters to names without a prefix."""
    first, patched = ("stage_0/conv_in", "body.0.in_conv") if adapter.light else ("conv_in", "conv_in")
    yield Entry(f"{first}/kernel", (f"{patched}.weight",), _of_patches(adapter.patch))
    yield Entry(f"{first}/bias", (f"{patched}.bias",), SAME)
    for i in range(len(adapter.stages)):
        if f"stage_{i}/conv_in" != first:
            yield from conv(f"stage_{i}/conv_in", f"body.{i}.in_conv")
        for j in range(adapter.blocks):
            for k in range(2):
                yield from conv(f"stage_{i}/block_{j}_conv_{k}", f"body.{i}.resnets.{j}.block{k + 1}")
        yield from conv(f"stage_{i}/conv_out", f"body.{i}.out_conv")


def _of_patches(side: int) -> Layout:
    """A convolution over patches, whose input channels run over colours, rows and columns in PyTorch's order."""

    def load(tensors: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        split = tensors[0].reshape(shape[3], -1, side, side, *shape[:2])
        return split.transpose(4, 5, 2, 3, 1, 0).reshape(shape)

    def save(array: np.ndarray) -> list[np.ndarray]:
        split = array.reshape(*array.shape[:2], side, side, -1, array.shape[3])
        whole = split.transpose(5, 4, 2, 3, 0, 1)
        return [whole.reshape(array.shape[3], array.shape[2], *array.shape[:2])]

    return Layout(load, save)


def _named(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors by their names without a prefix."""
    given = {name.removeprefix(PREFIX): tensors[name] for name in tensors}
    if "body.0.resnets.0.block1.weight" not in given:
        shown = ", ".join(sorted(tensors)[:4]) or "none"
        raise UserError(
            f"tensors: expected those of a T2I-Adapter of diffusers, body.0.resnets.0.block1.weight among them, got "
            f"{shown}. Fix: give the file of a T2I-Adapter in diffusers' format"
        )
    return given


def _count(given: Mapping[str, np.ndarray], pattern: str) -> int:
    found = [int(match[1]) for name in given if (match := re.fullmatch(pattern, name))]
    return max(found, default=-1) + 1
