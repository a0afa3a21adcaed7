"""Published autoencoders: names of their tensors in folders and single files, to our parameters and back.

>>> AutoencoderWeights("stable-diffusion/vae").read()["decoder"]["head"]["kernel"].shape
(3, 3, 128, 3)
"""

import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from jaxdiff.codecs.latent import parameter_shapes
from jaxdiff.errors import UserError
from jaxdiff.interop import autoencoder_configs
from jaxdiff.interop.mapping import (
    CONV,
    SAME,
    Entry,
    Tensors,
    conv,
    from_heads,
    norm,
    separate_heads,
    to_params,
)
from jaxdiff.interop.tensors import read_tensors
from jaxdiff.models.autoencoder_kl import AutoencoderKL
from jaxdiff.models.autoencoder_tiny import AutoencoderTiny
from jaxdiff.typing import Params

Network = AutoencoderKL | AutoencoderTiny

PREFIXES = ("first_stage_model.", "vae.", "")
"""Names of an autoencoder inside a whole model, the longest first."""


@dataclasses.dataclass(frozen=True)
class Naming:
    """How a file names and stores the tensors of an `AutoencoderKL`. The default is what diffusers writes today.

    Attributes:
      single_file: the names of latent diffusion, ``encoder.down.0.block.0.norm1``.
      old_attention: the names of attention in diffusers' first folders, ``query`` rather than ``to_q``.
      axes: further axes of length 1 in the projections of attention: 0 for matrices, 2 for 1 x 1 convolutions.
    """

    single_file: bool = False
    old_attention: bool = False
    axes: int = 0

    def level(self, side: str, level: int, last: int) -> str:
        """The prefix of a level, 0 being the finest and `last` the coarsest."""
        way = "down" if side == "encoder" else "up"
        if self.single_file:
            return f"{side}.{way}.{level}"
        return f"{side}.{way}_blocks.{level if way == 'down' else last - level}"

    @property
    def projections(self) -> tuple[str, str, str, str]:
        """Queries, keys, values and output of attention."""
        if self.single_file:
            return "q", "k", "v", "proj_out"
        if self.old_attention:
            return "query", "key", "value", "proj_attn"
        return "to_q", "to_k", "to_v", "to_out.0"

    @property
    def attention(self) -> str:
        """The prefix of attention within the encoder or the decoder."""
        return "mid.attn_1" if self.single_file else "mid_block.attentions.0"


SINGLE_FILE = Naming(single_file=True, axes=2)
"""The names of the files of Stable Diffusion."""


@dataclasses.dataclass(frozen=True)
class AutoencoderWeights:
    """The parameters of a published autoencoder, as frozen weights of the codec `Latent`.

    Attributes:
      path: a diffusers folder of the autoencoder or of its pipeline, a file of the autoencoder, or a file of a whole
        model that contains one. No code in it is run.
    """

    places: ClassVar[tuple[str, ...]] = ("path",)

    path: str

    def read(self) -> Params:
        return read_autoencoder(self.path)[1]

    def describe(self) -> str:
        return self.path


def read_autoencoder(path: str | os.PathLike[str]) -> tuple[Network, Params, dict[str, Any]]:
    """Read an autoencoder: the network, its float32 parameters, and its `config.json` ({} for a file without one).

    Raises:
      UserError: there is no such file, or no autoencoder in it, or tensors are missing, unknown or not finite.
    """
    root = pathlib.Path(path)
    checkpoint = read_tensors(root / "vae" if (root / "vae").is_dir() else root)
    config = checkpoint.metadata.get("config") if root.is_dir() else None
    tensors = checkpoint.tensors.renamed(own_names(checkpoint.tensors))
    network: Any = autoencoder_configs.network(config) if config else network_of(tensors)
    pairs = entries(network, naming_of(tensors))
    return network, to_params(pairs, tensors, parameter_shapes(network)), config or {}


def own_names(names: Iterable[str]) -> dict[str, str]:
    """The autoencoder's tensors in a file: {name without prefix: name in the file}, without those of its training loss.

    Raises:
      UserError: there is no autoencoder among them.
    """
    names = list(names)
    for prefix in PREFIXES:
        found = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
        if any(name.startswith("decoder.") for name in found):
            return {ours: theirs for ours, theirs in found.items() if not ours.startswith("loss.")}
    shown = ", ".join(sorted(names)[:4])
    raise UserError(
        f"path: expected the tensors of an autoencoder, decoder.* or first_stage_model.*, got {shown}, ... "
        "Fix: name a file that contains an autoencoder"
    )


def naming_of(tensors: Tensors) -> Naming:
    """The naming of a file, from the names and shapes of its tensors without prefix."""
    single = "decoder.mid.block_1.norm1.weight" in tensors
    for old in (False, True):
        naming = Naming(single, old)
        query = f"encoder.{naming.attention}.{naming.projections[0]}.weight"
        if query in tensors:
            return dataclasses.replace(naming, axes=tensors[query].ndim - 2)
    return Naming(single)


def network_of(tensors: Tensors, groups: int = 32) -> Network:
    """The architecture of an autoencoder, from the shapes of its tensors without prefix.

    Args:
      groups: number of groups in group norms, which no shape shows.

    Raises:
      UserError: the tensors are of no known autoencoder.
    """
    needed = ("encoder.conv_in.weight", "decoder.conv_in.weight")
    if "encoder.layers.0.weight" in tensors:
        return _tiny_network(tensors)
    if missing := [name for name in needed if name not in tensors]:
        raise UserError(
            f"path: expected the tensors of AutoencoderKL or AutoencoderTiny, got no {missing[0]}. "
            "Fix: name a file that contains an autoencoder with its encoder"
        )
    naming, widths = naming_of(tensors), []
    while (first := f"{_block(naming, 'encoder', len(widths), 0)}.conv1.weight") in tensors:
        widths.append(tensors[first].shape[0])
    blocks = itertools.takewhile(
        lambda j: f"{_block(naming, 'encoder', 0, j)}.conv1.weight" in tensors, itertools.count()
    )
    return AutoencoderKL(
        widths=tuple(widths),
        blocks=len(list(blocks)),
        latent_channels=tensors["decoder.conv_in.weight"].shape[1],
        image_channels=tensors["encoder.conv_in.weight"].shape[1],
        groups=groups,
        middle_attention=any(f"{naming.attention}." in name for name in tensors),
        use_quant_conv="quant_conv.weight" in tensors,
        use_post_quant_conv="post_quant_conv.weight" in tensors,
    )


def entries(network: Network, naming: Naming = Naming()) -> Iterator[Entry]:
    """The mapping of an autoencoder's tensors."""
    if isinstance(network, AutoencoderTiny):
        yield from _tiny_side("encoder", network.encoder_blocks)
        yield from _tiny_side("decoder", network.decoder_blocks)
        return
    for side, blocks in (("encoder", network.blocks), ("decoder", network.blocks + 1)):
        yield from conv(f"{side}/stem", f"{side}.conv_in")
        yield from norm(f"{side}/head_norm", f"{side}.{'' if naming.single_file else 'conv_'}norm_out")
        yield from conv(f"{side}/head", f"{side}.conv_out")
        for level in range(len(network.widths)):
            yield from _level(side, level, len(network.widths) - 1, blocks, naming)
        for j in range(2):
            theirs = f"mid.block_{j + 1}" if naming.single_file else f"mid_block.resnets.{j}"
            yield from _residual(f"{side}/middle_block_{j}", f"{side}.{theirs}", naming)
        yield from _attention(f"{side}/middle_attention", f"{side}.{naming.attention}", naming)
    yield from conv("quant_conv", "quant_conv")
    yield from conv("post_quant_conv", "post_quant_conv")


def _level(side: str, level: int, last: int, blocks: int, naming: Naming) -> Iterator[Entry]:
    for j in range(blocks):
        theirs = _block(naming, side, level, j, last)
        yield from _residual(f"{side}/level_{level}_block_{j}", theirs, naming)
    way = "down" if side == "encoder" else "up"
    sample = f"{way}sample" if naming.single_file else f"{way}samplers.0"
    theirs = f"{naming.level(side, level, last)}.{sample}.conv"
    yield from conv(f"{side}/{way}_{level}/conv", theirs)


def _block(naming: Naming, side: str, level: int, index: int, last: int = 0) -> str:
    return f"{naming.level(side, level, last)}.{'block' if naming.single_file else 'resnets'}.{index}"


def _residual(ours: str, theirs: str, naming: Naming) -> Iterator[Entry]:
    for i in range(2):
        yield from norm(f"{ours}/norm_{i}", f"{theirs}.norm{i + 1}")
        yield from conv(f"{ours}/conv_{i}", f"{theirs}.conv{i + 1}")
    skip = "nin_shortcut" if naming.single_file else "conv_shortcut"
    yield from conv(f"{ours}/skip", f"{theirs}.{skip}")


def _attention(ours: str, theirs: str, naming: Naming) -> Iterator[Entry]:
    *split, out = naming.projections
    yield from norm(f"{ours}/norm", f"{theirs}.{'' if naming.single_file else 'group_'}norm")
    for kind, name in (("kernel", "weight"), ("bias", "bias")):
        keys = tuple(f"{theirs}.{part}.{name}" for part in split)
        yield Entry(f"{ours}/query_key_value/{kind}", keys, separate_heads(naming.axes))
    yield Entry(f"{ours}/out/kernel", (f"{theirs}.{out}.weight",), from_heads(naming.axes))
    yield Entry(f"{ours}/out/bias", (f"{theirs}.{out}.bias",), SAME)


def _tiny_side(side: str, blocks: tuple[int, ...]) -> Iterator[Entry]:
    """Layers are numbered in execution order; the decoder's ReLU and its repetitions of pixels count as well."""
    last, decoding = len(blocks) - 1, side == "decoder"
    yield from conv(f"{side}/stem", f"{side}.layers.0")
    number = 2 if decoding else 1
    for stage, count in enumerate(blocks):
        level = last - stage if decoding else stage
        if stage > 0:
            number += decoding
            name = f"up_{level + 1}" if decoding else f"down_{level - 1}"
            yield Entry(f"{side}/{name}/kernel", (f"{side}.layers.{number}.weight",), CONV)
            number += 1
        for j in range(count):
            for i in range(3):
                theirs = f"{side}.layers.{number}.conv.{2 * i}"
                yield from conv(f"{side}/level_{level}_block_{j}/conv_{i}", theirs)
            number += 1
    yield from conv(f"{side}/head", f"{side}.layers.{number}")


def _tiny_network(tensors: Mapping[str, np.ndarray]) -> AutoencoderTiny:
    width, image_channels = tensors["encoder.layers.0.weight"].shape[:2]
    return AutoencoderTiny(
        width=width,
        encoder_blocks=_counts(tensors, "encoder"),
        decoder_blocks=_counts(tensors, "decoder"),
        latent_channels=tensors["decoder.layers.0.weight"].shape[1],
        image_channels=image_channels,
    )


def _counts(names: Iterable[str], side: str) -> tuple[int, ...]:
    """The number of blocks after each convolution but the last."""
    pattern = re.compile(rf"{side}\.layers\.(\d+)\.(conv\.0\.)?weight")
    layers = sorted((int(found[1]), bool(found[2])) for found in map(pattern.fullmatch, names) if found)
    counts: list[int] = []
    for _, block in layers:
        if block:
            counts[-1] += 1
        else:
            counts.append(0)
    return tuple(counts[:-1])
