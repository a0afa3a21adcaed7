"""Modules of a `UNet` in execution order, by which other codebases number theirs."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.interface import Part
from jaxdiff.models.unet import UNet

Kind = Literal["stem", "encoder", "down", "input", "middle", "decoder", "up", "head"]


@dataclasses.dataclass(frozen=True)
class Module:
    """One module of a `UNet`.

    Attributes:
      name: name in the network's parameters.
      kind: role in the network.
      level: 0 is the finest resolution. A change of resolution belongs to the level that it leaves.
      index: number of a block within its level.
      attention: the part after the residual block, if any.
    """

    name: str
    kind: Kind
    level: int = 0
    index: int = 0
    attention: Part | None = None


def modules(network: UNet) -> Iterator[Module]:
    """All modules; the norm before a head is part of the head."""
    last = len(network.levels) - 1
    yield Module("stem", "stem")
    for i, level in enumerate(network.levels):
        for j in range(level.blocks):
            yield Module(f"encoder_{i}_block_{j}", "encoder", i, j, level.attention)
        if i < last:
            yield Module(f"down_{i}", "down", i)
            if network.input_path != "none":
                yield Module(f"input_{i}", "input", i)
    attention = network.middle.attention if isinstance(network.middle, ResidualMiddle) else None
    yield Module("middle_block_0", "middle", last, 0, attention)
    yield Module("middle_block_1", "middle", last, 1)
    for i, level in reversed(list(enumerate(network.levels))):
        count = level.blocks + int(network.resampled_skips)
        for j in range(count):
            attends = network.decoder_attention == "every" or j == count - 1
            yield Module(f"decoder_{i}_block_{j}", "decoder", i, j, level.attention if attends else None)
        if i == 0 or network.output_path == "skip":
            yield Module(f"head_{i}" if i else "head", "head", i)
        if i > 0:
            yield Module(f"up_{i}", "up", i)
