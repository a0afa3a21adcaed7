"""The parts of a `UNet` in the order in which they work, as all peers name theirs after it."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from jaxdiff.models.unet import UNet

Kind = Literal["stem", "encoder", "down", "input", "middle", "decoder", "up", "head"]


@dataclasses.dataclass(frozen=True)
class Place:
    """One module of ours.

    Attributes:
      name: of the module in the network.
      kind: where it is.
      level: 0 is the finest resolution. A change of size belongs to the level that it leaves.
      index: of a block among those of its level.
    """

    name: str
    kind: Kind
    level: int = 0
    index: int = 0


def places(network: UNet) -> Iterator[Place]:
    """All of them but the norm before the head, which shares its place."""
    last = len(network.levels) - 1
    yield Place("stem", "stem")
    for i, level in enumerate(network.levels):
        for j in range(level.blocks):
            yield Place(f"encoder_{i}_block_{j}", "encoder", i, j)
        if i < last:
            yield Place(f"down_{i}", "down", i)
            if network.residual_input:
                yield Place(f"input_{i}", "input", i)
    yield Place("middle_block_0", "middle", last, 0)
    yield Place("middle_block_1", "middle", last, 1)
    for i, level in reversed(list(enumerate(network.levels))):
        for j in range(level.blocks + int(network.resampled_skips)):
            yield Place(f"decoder_{i}_block_{j}", "decoder", i, j)
        if i > 0:
            yield Place(f"up_{i}", "up", i)
    yield Place("head", "head")
