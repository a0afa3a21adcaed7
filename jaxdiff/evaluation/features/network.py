"""Networks over any number of images: batches of one size on all local devices, in full precision."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.distributed.partitioning import batch_sharding, replicated
from jaxdiff.errors import expect
from jaxdiff.typing import Params


class Network:
    """A frozen network with its parameters on the local devices.

    Args:
      function: from parameters and a batch of inputs to a tree of arrays [n, ...], a pure function.
      params: the parameters.
      hash: SHA-256 of the file they come from.
    """

    def __init__(self, function: Callable[..., Any], params: Params, hash: str):
        self.hash = hash
        self._mesh = MeshShape().make(jax.local_devices())
        self._params = jax.device_put(params, replicated(self._mesh))
        self._program = jax.jit(function)

    def __call__(self, *inputs: np.ndarray, batch_size: int) -> Any:
        """The outputs for all rows, as arrays of NumPy. The last batch is filled up with zeros, which are cut off.

        Args:
          inputs: arrays with the same number of rows.
          batch_size: rows at once, rounded up to a multiple of the number of devices.
        """
        size = -(-batch_size // self._mesh.size) * self._mesh.size
        n = len(inputs[0])
        parts = [
            self._batch([each[first : first + size] for each in inputs], size)
            for first in range(0, max(n, 1), size)
        ]
        return jax.tree.map(lambda *each: np.concatenate(each), *parts)

    def _batch(self, inputs: list[np.ndarray], size: int) -> Any:
        n = len(inputs[0])
        whole = [np.concatenate([each, np.zeros((size - n, *each.shape[1:]), each.dtype)]) for each in inputs]
        placed = jax.device_put(whole, batch_sharding(self._mesh))
        with jax.default_matmul_precision("highest"):  # an accelerator's default changes features by 1e-3
            found = self._program(self._params, *placed)
        return jax.tree.map(lambda array: np.asarray(array[:n], np.float32), found)


def check_images(images: np.ndarray) -> None:
    """Raise `UserError` unless these are stored images with one channel or three."""
    fits = images.ndim == 4 and images.dtype == np.uint8 and images.shape[-1] in (1, 3)
    got = f"{images.dtype} {list(images.shape)}"
    expected = "uint8 [n, height, width, 3], or 1 channel of grey"
    expect(fits, "images", got, expected, "round images by jaxdiff.data.images.to_uint8", got)
