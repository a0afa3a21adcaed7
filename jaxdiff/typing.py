"""Names for the arrays that travel through the library. Shapes are checked by the tests only."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Bool, Float, Key, Shaped, UInt8
from numpy import ndarray

Data = Float[Array, "batch *data"]
"""What is diffused: images, latents or feature vectors, of any rank behind the batch axis. Scale near [-1, 1]."""

Images = Float[Array, "batch height width channels"]
"""Images in [-1, 1], channels last."""

Features = Float[Array, "batch out_height out_width out_channels"]
"""What comes of `Images` by a layer or network that may change their size and channels."""

Bytes = UInt8[ndarray, "batch height width channels"]
"""Images as they are stored and shown: 0 to 255, on the host."""

Times = Float[Array, "batch"]
"""Diffusion time of each example: 0 is data, 1 is noise."""

Scalar = Float[Array, ""]

Keys = Key[Array, "batch"]
"""One random key for each image, so that an image does not depend on its neighbours in the batch."""

Drops = Mapping[str, Bool[Array, "batch"]]
"""For each condition: which examples of the batch are to see its null instead."""

Fields = Mapping[str, Any]
"""The conditions of a batch by name, each with a leading batch axis."""

Batch = Mapping[str, Shaped[Array, "batch ..."]]
Params = Any
Metrics = dict[str, Any]

__all__ = [
    "Array",
    "Batch",
    "Bool",
    "Bytes",
    "Data",
    "Drops",
    "Features",
    "Fields",
    "Float",
    "Images",
    "Key",
    "Keys",
    "Metrics",
    "Params",
    "Scalar",
    "Times",
]
