"""Aliases of the array types in public signatures. Only the tests check shapes."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, BFloat16, Bool, Float, Float32, Int, Key, Shaped, UInt8
from numpy import ndarray

Data = Float[Array, "batch *data"]
"""What is diffused: images, latents or feature vectors, of any rank behind the batch axis. Scale near [-1, 1]."""

Output = Float[Array, "batch ..."]
"""The output of a network for `Data` of the same rank; it may have more channels."""

Images = Float[Array, "batch height width channels"]
"""Images in [-1, 1], channels last."""

Features = Float[Array, "batch out_height out_width out_channels"]
"""Images or feature maps after a layer that may change their size and channels."""

Bytes = UInt8[ndarray, "batch height width channels"]
"""Stored images: 0 to 255, on the host."""

Times = Float[Array, "batch"]
"""Diffusion time of each example: 0 is data, 1 is noise."""

Scalar = Float[Array, ""]

Keys = Key[Array, "batch"]
"""One random key per example, so that a sample does not depend on its neighbours in the batch."""

Drops = Mapping[str, Bool[Array, "batch"]]
"""For each condition, True for the examples whose condition is replaced by its null."""

Fields = Mapping[str, Any]
"""Values of the conditions of a batch by name, each with a leading batch axis."""

Stored = Shaped[Array, "batch ..."]
"""Examples as they are stored, of any type and shape."""

Batch = Mapping[str, Any]
"""Fields of a batch by name: `Stored` arrays, or trees of arrays that frozen networks have made of them."""

Params = Any


@runtime_checkable
class Weights(Protocol):
    """Parameters of a network that is used and not trained, by where they come from: a run, or a published file."""

    def read(self) -> Params:
        """The tree of numpy arrays. Boxes with the names of axes (`nn.Partitioned`) say how arrays are sharded.

        Raises:
          UserError: there is no such run or file, or it is damaged.
        """
        ...

    def describe(self) -> str:
        """The origin, for the run's folder and for errors."""
        ...


@runtime_checkable
class TypedWeights(Weights, Protocol):
    """Weights that say in which type the device holds them.

    Attributes:
      dtype: the type of arrays with two axes or more, such as kernels: "float32", "bfloat16" or "float16". The others
        are float32.
    """

    @property
    def dtype(self) -> str: ...


def dtype_of(weights: Weights) -> str:
    """The type in which the device holds weights: float32 unless they say so."""
    return weights.dtype if isinstance(weights, TypedWeights) else "float32"


Metrics = dict[str, Any]

__all__ = [
    "Array",
    "BFloat16",
    "Batch",
    "Bool",
    "Bytes",
    "Data",
    "Drops",
    "Features",
    "Fields",
    "Float",
    "Float32",
    "Images",
    "Int",
    "Key",
    "Keys",
    "Metrics",
    "Output",
    "Params",
    "Scalar",
    "Stored",
    "Times",
    "TypedWeights",
    "Weights",
    "dtype_of",
]
