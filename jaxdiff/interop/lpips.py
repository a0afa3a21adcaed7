"""Published weights of LPIPS: torchvision's VGG-16, and the weights of its channels from the authors' file."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from jaxdiff.errors import expect
from jaxdiff.interop.tensors import read_tensors
from jaxdiff.models.lpips import BLOCKS
from jaxdiff.typing import Params


@dataclasses.dataclass(frozen=True)
class LpipsFiles:
    """The parameters of `jaxdiff.models.lpips.Lpips` from two files of PyTorch or safetensors. No code in them is run.

    Attributes:
      features: VGG-16 of torchvision, such as ``vgg16-397923af.pth``; its classifier is not read.
      linear: the channels' weights of the authors, ``vgg.pth`` of LPIPS 0.1.
    """

    places: ClassVar[tuple[str, ...]] = ("features", "linear")

    features: str
    linear: str

    def read(self) -> Params:
        """The tree of parameters, float32.

        Raises:
          UserError: a file cannot be read, or lacks a tensor of the right shape; or a channel's weight is negative.
        """
        network, weights = (read_tensors(path, None).tensors for path in (self.features, self.linear))
        tree, position, channels = {}, 0, 3
        for i, (width, convolutions) in enumerate(BLOCKS):
            for j in range(convolutions):
                kernel = _tensor(
                    network, f"features.{position}.weight", (width, channels, 3, 3), self.features
                )
                bias = _tensor(network, f"features.{position}.bias", (width,), self.features)
                tree[f"conv_{i}_{j}"] = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
                position, channels = position + 2, width  # a ReLU follows
            position += 1  # the pooling
        own = {f"weights_{i}": self._channels(weights, i, width) for i, (width, _) in enumerate(BLOCKS)}
        return {"features": tree, **own}

    def describe(self) -> str:
        return f"{self.features} and {self.linear}"

    def _channels(self, tensors: Mapping[str, np.ndarray], block: int, width: int) -> np.ndarray:
        name = f"lin{block}.model.1.weight"
        found = _tensor(tensors, name, (1, width, 1, 1), self.linear).ravel()
        positive = bool(np.all(found >= 0))
        expect(positive, "linear", self.linear, "weights >= 0", "download the file again", "negative ones")
        return found


def _tensor(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], path: str) -> np.ndarray:
    found = np.asarray(tensors[name], np.float32) if name in tensors else None
    got = "none" if found is None else str(list(found.shape))
    fits = found is not None and found.shape == shape
    expect(fits, "perceptual", path, f"a tensor {name} {list(shape)}", "give the published files", got)
    assert found is not None
    return found
