"""Codecs: from stored examples to the data that are diffused, and back."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from jaxdiff.typing import Array, Keys, Params, Stored, Weights

Shape = tuple[int, ...]
"""Axes of one example, without the batch axis."""


@runtime_checkable
class Codec(Protocol):
    """The map between stored examples and diffused data, applied once in training's draw and once after sampling.

    `encode` and `decode` run on the device, inside jit. `checked` and `stored` run on the host.

    Attributes:
      frozen: networks that the codec uses and that nobody trains, by name. The trees of their parameters are the
        first argument of `encode` and `decode`.
    """

    @property
    def frozen(self) -> Mapping[str, Weights]: ...

    def data_shape(self, stored_shape: Shape) -> Shape:
        """The shape of a diffused example, from that of a stored one.

        Raises:
          UserError: the codec has no use for examples of this shape.
        """
        ...

    def example(self, batch: int, stored_shape: Shape) -> np.ndarray:
        """Placeholder stored examples [batch, *stored_shape], zeros of the stored type."""
        ...

    def encode(self, frozen: Mapping[str, Params], stored: Stored, keys: Keys) -> Array:
        """Float32 data [batch, *data_shape] of stored examples [batch, *stored_shape].

        Examples that are floats in the range of decoded ones are accepted as well. `keys`, one for each example, are
        for codecs that sample.
        """
        ...

    def decode(self, frozen: Mapping[str, Params], x_0: Array) -> Array:
        """Float32 examples [batch, *stored_shape] of data; `stored` completes them."""
        ...

    def checked(self, name: str, stored: Any) -> np.ndarray:
        """Stored examples as an array of the type that `encode` takes.

        Args:
          name: the field that holds them, for errors.
          stored: an array with or without a batch axis.

        Raises:
          UserError: the examples have another type.
        """
        ...

    def stored(self, decoded: np.ndarray) -> np.ndarray:
        """Decoded examples in the type that is stored.

        Raises:
          UserError: an example holds NaN or infinity.
        """
        ...


@runtime_checkable
class Precomputing(Protocol):
    """A codec whose costly part draws nothing, so that its result can be stored in place of an example.

    Attributes:
      precomputed_by: the fields of the codec, apart from the origins of weights, that this part depends on.
    """

    precomputed_by: ClassVar[tuple[str, ...]]

    def precompute(self, frozen: Mapping[str, Params], stored: Any) -> Any:
        """What the codec's networks make of stored examples: a tree of arrays with leading batch axes.

        `Codec.encode` accepts it in place of the examples, and gives the same data for the same keys.
        """
        ...


@runtime_checkable
class KnownShapes(Protocol):
    """A codec that knows its networks' parameters by shape, so that cost estimates read no weights."""

    def frozen_shapes(self) -> Mapping[str, Params]:
        """Trees of `jax.ShapeDtypeStruct` by the names in `Codec.frozen`."""
        ...
