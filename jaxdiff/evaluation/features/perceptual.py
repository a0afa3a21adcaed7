"""LPIPS as a distance of stored images, with a user's files of weights (Zhang et al. 2018)."""

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, UInt8

from jaxdiff.errors import expect, one_of, positive
from jaxdiff.evaluation.features.network import Network, check_images
from jaxdiff.evaluation.features.profiles import LARGEST, coloured
from jaxdiff.evaluation.features.weights import checked_hash
from jaxdiff.interop.lpips import LpipsFiles
from jaxdiff.models.lpips import NETWORKS, Lpips
from jaxdiff.typing import Array, Images


@dataclasses.dataclass(frozen=True)
class PerceptualDistance:
    """LPIPS between pairs of images, at their own size. Images are not resized.

    Attributes:
      weights: the network of torchvision, ``alexnet-owt-7be5be79.pth`` or ``vgg16-397923af.pth``.
      linear: the weights of its channels by the authors, ``alex.pth`` or ``vgg.pth`` of LPIPS 0.1.
      network: "alex", the default of the authors' code for evaluation; or "vgg".
      batch_size: number of pairs at once.
    """

    places: ClassVar[tuple[str, ...]] = ("weights", "linear")

    weights: str
    linear: str
    network: str = "alex"
    batch_size: int = 64

    def __post_init__(self):
        one_of(self, "network", NETWORKS)
        positive(self, "batch_size")

    @property
    def name(self) -> str:
        return f"LPIPS ({self.network})"

    @property
    def hash(self) -> str:
        """SHA-256 of both files, the network's first."""
        return self._network.hash

    def __call__(
        self,
        a: UInt8[np.ndarray, "n height width channels"],
        b: UInt8[np.ndarray, "..."],
    ) -> Float32[np.ndarray, "n"]:
        """The distance of each pair; 0 for equal images. Grey images are allowed.

        Raises:
          UserError: a file cannot be read or is another one, or the images are too small for the network.
        """
        check_images(a)
        expect(
            a.shape == b.shape, "images", a.shape, "pairs of one shape", "resize one of them", str(b.shape)
        )
        return self._network(a, b, batch_size=self.batch_size)

    @property
    def _network(self) -> Network:
        return _load(self.weights, self.linear, self.network)


@functools.lru_cache(maxsize=2)
def _load(weights: str, linear: str, network: str) -> Network:
    hashes = [checked_hash(path, None) for path in (weights, linear)]
    params, module = LpipsFiles(weights, linear, network).read(), Lpips(network)

    def distances(params: dict, a: UInt8[Array, "..."], b: UInt8[Array, "..."]) -> Array:
        found: Any = module.apply({"params": params}, _symmetric(a), _symmetric(b))
        return found

    return Network(distances, params, " ".join(hashes))


def _symmetric(images: UInt8[Array, "n height width channels"]) -> Images:
    """Values in [-1, 1]."""
    return coloured(images) / (LARGEST / 2) - 1
