"""InceptionV3 as a feature space: that of FID, sFID and the inception score."""

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, UInt8

from jaxdiff.errors import one_of, positive
from jaxdiff.evaluation.features.network import Network, check_images
from jaxdiff.evaluation.features.profiles import coloured, profile_of
from jaxdiff.evaluation.features.weights import check_sha256, checked_hash, is_known
from jaxdiff.interop.inception import inception_params
from jaxdiff.interop.tensors import read_tensors
from jaxdiff.models.inception import CLASSES, SIZE, InceptionOutputs, InceptionV3
from jaxdiff.typing import Array, Params

NAMES = {
    "pool": "Inception-v3 (FID)",
    "spatial": "Inception-v3 spatial (sFID)",
    "logits": "Inception-v3 logits (IS)",
    "biased_logits": "Inception-v3 class logits",
}
"""The outputs, and their names with the published weights."""

DIMS = {"pool": 2048, "spatial": 2023, "logits": CLASSES, "biased_logits": CLASSES}


@dataclasses.dataclass(frozen=True)
class Inception:
    """Outputs of InceptionV3 of the FID, with a user's file of weights (Heusel et al. 2017).

    Extractors that differ in `output` only share one pass of the network over a batch.

    Attributes:
      weights: ``pt_inception-2015-12-05-6726825d.pth`` of pytorch-fid, which torch-fidelity calls
        ``weights-inception-2015-12-05-6726825d.pth``. Other files are refused unless `sha256` names them.
      profile: "adm-tf" (also torch-fidelity's and EDM's), "pytorch-fid" or "clean-fid", see `profiles.PROFILES`.
      output: "pool" for FID, KID and precision; "spatial" for sFID; "logits", without the bias of the classes, for
        the inception score; or "biased_logits".
      sha256: the SHA-256 that the file must have, or its first digits. Features of other weights than the published
        ones are not called FID.
      batch_size: number of images at once.
    """

    places: ClassVar[tuple[str, ...]] = ("weights",)

    weights: str
    profile: str = "adm-tf"
    output: str = "pool"
    sha256: str | None = None
    batch_size: int = 64

    def __post_init__(self):
        profile_of(self.profile, "adm-tf", "pytorch-fid", "clean-fid")
        one_of(self, "output", NAMES)
        check_sha256(self.sha256)
        positive(self, "batch_size")

    @property
    def name(self) -> str:
        if is_known(self.sha256):
            return NAMES[self.output]
        return f"Inception-v3 {self.output} of other weights ({self.sha256})"

    @property
    def dim(self) -> int:
        """The length of the vectors."""
        return DIMS[self.output]

    @property
    def hash(self) -> str:
        """SHA-256 of the file."""
        return self._network.hash

    def __call__(self, images: UInt8[np.ndarray, "n height width channels"]) -> Float32[np.ndarray, "n dim"]:
        """The output for each image, which may be grey.

        Raises:
          UserError: the file cannot be read, is another one, or holds another network.
        """
        return self.shared(images)[self]

    def shared(
        self, images: UInt8[np.ndarray, "n height width channels"]
    ) -> dict["Inception", Float32[np.ndarray, "n _"]]:
        """All outputs for each image, by the extractors that they belong to."""
        check_images(images)
        outputs = self._network(images, batch_size=self.batch_size)
        return {dataclasses.replace(self, output=name): getattr(outputs, name) for name in NAMES}

    @property
    def _network(self) -> Network:
        return _load(self.weights, self.sha256, self.profile)


@functools.lru_cache(maxsize=2)
def _load(weights: str, sha256: str | None, profile: str) -> Network:
    found = checked_hash(weights, sha256, needs_known=True)
    tensors = read_tensors(weights).tensors
    params = inception_params(tensors)
    scaled = profile_of(profile, profile).scaled

    def outputs(params: Params, images: UInt8[Array, "n height width channels"]) -> InceptionOutputs:
        found: Any = InceptionV3().apply({"params": params}, scaled(coloured(images), SIZE))
        return found

    return Network(outputs, params, found)
