"""Fingerprint of a data set: identifies the real images that a value was measured against."""

import hashlib

import numpy as np
from jaxtyping import Integer, UInt8


class Fingerprint:
    """A hash of the images and labels of a data set of `n` examples: the data that a value was measured against."""

    def __init__(self, n: int):
        self._n, self._hash, self._labels = n, hashlib.sha256(), []

    def add(
        self, images: UInt8[np.ndarray, "b height width channels"], labels: Integer[np.ndarray, "b"]
    ) -> None:
        """Take in the next batch."""
        if not self._labels:
            self._hash.update(str((self._n, *images.shape[1:])).encode())
        self._hash.update(images.tobytes())
        self._labels.append(np.asarray(labels, np.int64))

    def value(self) -> str:
        """The hash of all batches, as ``sha256:`` and 16 digits."""
        digest = self._hash.copy()
        for labels in self._labels:
            digest.update(labels.tobytes())
        return f"sha256:{digest.hexdigest()[:16]}"
