"""Published weights of LPIPS: VGG-16 or AlexNet of torchvision, and the weights of channels from the authors' file."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np

from jaxdiff.errors import expect, one_of
from jaxdiff.interop.tensors import read_tensors
from jaxdiff.models.lpips import ALEX_LAYERS, BLOCKS, NETWORKS, channels
from jaxdiff.typing import Params


@dataclasses.dataclass(frozen=True)
class LpipsFiles:
    """The parameters of `jaxdiff.models.lpips.Lpips` from two files of PyTorch or safetensors. No code in them is run.

    Attributes:
      features: the network of torchvision, such as ``vgg16-397923af.pth`` or ``alexnet-owt-7be5be79.pth``; its
        classifier is not read.
      linear: the channels' weights of the authors, ``vgg.pth`` or ``alex.pth`` of LPIPS 0.1.
      network: "vgg" or "alex".
    """

    places: ClassVar[tuple[str, ...]] = ("features", "linear")

    features: str
    linear: str
    network: str = "vgg"

    def __post_init__(self):
        one_of(self, "network", NETWORKS)

    def read(self) -> Params:
        """The tree of parameters, float32.

        Raises:
          UserError: a file cannot be read, or lacks a tensor of the right shape; or a channel's weight is negative.
        """
        network, weights = (read_tensors(path, None).tensors for path in (self.features, self.linear))
        tree, before = {}, 3
        for name, position, width, side in _convolutions(self.network):
            shape = (width, before, side, side)
            kernel = _tensor(network, f"features.{position}.weight", shape, self.features)
            bias = _tensor(network, f"features.{position}.bias", (width,), self.features)
            tree[name] = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
            before = width
        widths = enumerate(channels(self.network))
        own = {f"weights_{i}": self._channels(weights, i, width) for i, width in widths}
        return {"features": tree, **own}

    def describe(self) -> str:
        return f"{self.features} and {self.linear}"

    def _channels(self, tensors: Mapping[str, np.ndarray], block: int, width: int) -> np.ndarray:
        name = f"lin{block}.model.1.weight"
        found = _tensor(tensors, name, (1, width, 1, 1), self.linear).ravel()
        positive = bool(np.all(found >= 0))
        expect(positive, "linear", self.linear, "weights >= 0", "download the file again", "negative ones")
        return found


def _convolutions(network: str) -> Iterator[tuple[str, int, int, int]]:
    """Our name, the number in torchvision's sequence, the channels and the side of the kernel of each convolution."""
    position = 0
    if network == "alex":
        for i, layer in enumerate(ALEX_LAYERS):
            position += layer.pooled
            yield f"conv_{i}", position, layer.width, layer.size
            position += 2  # a ReLU follows
        return
    for i, (width, convolutions) in enumerate(BLOCKS):
        for j in range(convolutions):
            yield f"conv_{i}_{j}", position, width, 3
            position += 2
        position += 1  # the pooling


def _tensor(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], path: str) -> np.ndarray:
    found = np.asarray(tensors[name], np.float32) if name in tensors else None
    got = "none" if found is None else str(list(found.shape))
    fits = found is not None and found.shape == shape
    expect(fits, "perceptual", path, f"a tensor {name} {list(shape)}", "give the published files", got)
    assert found is not None
    return found
