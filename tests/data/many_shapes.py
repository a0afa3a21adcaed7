"""Images of many shapes, and batches of them."""

import dataclasses
import itertools

import numpy as np

from jaxdiff.data.buckets import Buckets
from tests.data.pixels import noise

SMALL = Buckets(size=16, step=4, max_ratio=4.0)


@dataclasses.dataclass(frozen=True)
class Many:
    """Random images of many shapes."""

    n: int = 37
    image_shape = (None, None, 3)
    num_classes = None

    def open(self):
        return self

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        draw = np.random.default_rng(i)
        height, width = draw.integers(20, 80, 2)
        return {"image": noise(height, width, seed=i), "index": np.int32(i)}


def take(pipeline, batch_size, steps, *where):
    iterator = pipeline.batches(batch_size, *where)
    found = list(itertools.islice(iterator, steps))
    iterator.close()
    return found
