"""DINOv2 as a feature space: that of FD-DINOv2, closer to human judgement than Inception's (Stein et al. 2023)."""

import dataclasses
import functools
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt8

from jaxdiff.errors import expect, one_of, positive
from jaxdiff.evaluation.features.network import Network, check_images
from jaxdiff.evaluation.features.profiles import LARGEST, coloured, profile_of
from jaxdiff.evaluation.features.weights import check_sha256, checked_hash
from jaxdiff.interop.dinov2 import dinov2_network, dinov2_params
from jaxdiff.interop.tensors import read_tensors
from jaxdiff.models.dinov2 import Dinov2
from jaxdiff.typing import Array, Float, Images, Params

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the red, green and blue values in [0, 1] of ImageNet."""

OTHER = "other"

MODELS = {
    f"{name}{' with registers' if registers else ''}": (width, layers, registers)
    for name, width, layers in (("ViT-L/14", 1024, 24), ("ViT-B/14", 768, 12), ("ViT-S/14", 384, 12))
    for registers in (0, 4)
}
"""Width, layers and registers of the published models."""


@dataclasses.dataclass(frozen=True)
class Dinov2Features:
    """The class token of DINOv2, with a user's file of weights (Oquab et al. 2023).

    Attributes:
      weights: the authors' file, such as ``dinov2_vitl14_pretrain.pth``, or a file or folder of transformers. Published
        figures of FD-DINOv2 are of ViT-L/14 without registers.
      model: which model that is, a key of `MODELS`; or "other" for any sizes.
      profile: "edm2" (Karras et al. 2024), or "clean-fid".
      size: side in pixels to which images are resized; 224 in published figures.
      sha256: the SHA-256 that the file must have, or its first digits.
      batch_size: number of images at once.
    """

    places: ClassVar[tuple[str, ...]] = ("weights",)

    weights: str
    model: str = "ViT-L/14"
    profile: str = "edm2"
    size: int = 224
    sha256: str | None = None
    batch_size: int = 64

    def __post_init__(self):
        one_of(self, "model", (*MODELS, OTHER))
        profile_of(self.profile, "edm2", "clean-fid")
        check_sha256(self.sha256)
        positive(self, "size", "batch_size")

    @property
    def name(self) -> str:
        return f"DINOv2 {self.model} at {self.size} pixels"

    @property
    def dim(self) -> int:
        """The length of the vectors: 384, 768 or 1024."""
        return self._loaded[0].width

    @property
    def hash(self) -> str:
        """SHA-256 of the file."""
        return self._loaded[1].hash

    def __call__(self, images: UInt8[np.ndarray, "n height width channels"]) -> Float32[np.ndarray, "n dim"]:
        """The vector of each image, which may be grey.

        Raises:
          UserError: the file cannot be read, is another one, or holds another network.
        """
        check_images(images)
        return self._loaded[1](images, batch_size=self.batch_size)

    @property
    def _loaded(self) -> tuple[Dinov2, Network]:
        return _load(self.weights, self.model, self.profile, self.size, self.sha256)


@functools.lru_cache(maxsize=2)
def _load(weights: str, model: str, profile: str, size: int, sha256: str | None) -> tuple[Dinov2, Network]:
    found = checked_hash(weights, sha256)
    tensors = read_tensors(weights).tensors
    network = dinov2_network(tensors)
    _check_model(network, model, weights)
    resized = profile_of(profile, profile).resized

    def vectors(params: Params, images: UInt8[Array, "n height width channels"]) -> Float[Array, "n dim"]:
        pixels = normalised(resized(coloured(images), size))
        return network.apply({"params": params}, pixels).vector

    return network, Network(vectors, dinov2_params(network, tensors), found)


def normalised(levels: Images) -> Images:
    """Images with values in levels, 0 to 255, as DINOv2 reads them: by mean and deviation of ImageNet's channels."""
    mean, std = (jnp.asarray(values, jnp.float32)[None, None, None] for values in (MEAN, STD))
    return (levels / LARGEST - mean) / std


def _check_model(network: Dinov2, model: str, weights: str) -> None:
    """Raise `UserError` unless the network in a file is the model that is named."""
    sizes = (network.width, network.layers, network.registers)
    names = [name for name, known in MODELS.items() if known == sizes]
    got = names[0] if names else "width {}, {} layers and {} registers".format(*sizes)
    fix = f"give model={names[0] if names else OTHER!r}, or the file that was meant"
    fits = model == OTHER or MODELS[model] == sizes
    expect(fits, "model", model, f"the model in {weights}", fix, got)
