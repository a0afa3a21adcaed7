"""Features of a decoder that are kept from one call of a network for later ones (Ma et al. 2024, "DeepCache").

They are in the collection "cache". A call with that collection mutable keeps the features that enter each block of the
decoder. A call that receives those of one block computes that block and what follows only, and of the encoder what
their skips need. Any other call is the network without this.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn

from jaxdiff.errors import expect

COLLECTION = "cache"
_LAST = "last_"


@runtime_checkable
class Reusable(Protocol):
    """A network that keeps features of its decoder."""

    @property
    def decoder_blocks(self) -> int:
        """Number of blocks of the decoder."""
        ...


class Reused(NamedTuple):
    """Features of an earlier call.

    Attributes:
      blocks: number of blocks of the decoder that are still to come.
      features: a tree of arrays that enters the first of them.
    """

    blocks: int
    features: Any


def keep(module: nn.Module, blocks: int, features: Any) -> None:
    """Keep the features that enter the last `blocks` blocks of the decoder, if the caller wants them."""
    if module.is_mutable_collection(COLLECTION) and not module.is_initializing():
        module.put_variable(COLLECTION, f"{_LAST}{blocks}", features)


def reused(module: nn.Module) -> Reused | None:
    """The features that the caller gives, or None."""
    if module.is_mutable_collection(COLLECTION):
        return None
    given = module.variables.get(COLLECTION, {})
    return next((Reused(int(name.removeprefix(_LAST)), value) for name, value in given.items()), None)


def check(network: nn.Module, blocks: int) -> None:
    """Raise `UserError` for a network without `decoder_blocks`, or with no more than `blocks` of them."""
    name, fix = type(network).__name__, "leave sampling.reuse out"
    expect(
        isinstance(network, Reusable), "sampling.reuse", name, "a network with a decoder, such as UNet", fix
    )
    expected = f"fewer than the {network.decoder_blocks} blocks of the network's decoder"
    expect(blocks < network.decoder_blocks, "sampling.reuse.blocks", blocks, expected, "give fewer")


def kept(collection: Mapping[str, Any], blocks: int) -> Mapping[str, Any]:
    """Of all that a call of a network has kept, what enters its last `blocks` blocks."""
    name = f"{_LAST}{blocks}"
    return {name: collection[name]}
