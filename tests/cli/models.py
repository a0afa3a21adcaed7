"""Conditions of models whose images are the sum of their conditions, for the command that samples."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning.condition import Condition
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.nulls import Null
from jaxdiff.conditioning.vector import ClassLabel
from jaxdiff.embeddings import Embeddings
from tests.generation.test_inputs import WEIGHTS


class Length(Condition):
    """A text, with an effect of a hundredth of its length."""

    flag: ClassVar[str | None] = "text"
    null: ClassVar[Null] = "zero"

    def __call__(self, lengths, drop):
        return Embeddings(vector=jnp.where(drop, 0.0, lengths)[:, None])

    @nn.nowrap
    def read(self, value, name="text"):
        if isinstance(value, str):
            return np.float32(len(value) / 100)
        return np.array([len(text) / 100 for text in value], np.float32)

    @nn.nowrap
    def example(self, batch, data_shape=None):
        return jnp.zeros(batch)


SIZE = Continuous(2, 1, default=(0.5, 0.0))
LABEL = ClassLabel(3, 1, null="zero")
CONDITIONS = {"label": LABEL, "text": Length(), "crop": SIZE}
PARAMS = {"label": WEIGHTS["label"], "text": {}, "crop": WEIGHTS["size"]}
LOW = {"low": ImageCondition(1, factor=2.0, method="nearest")}
PHOTO = np.arange(60, 84, dtype=np.uint8).reshape(4, 6)


def enlarged(pixels):
    return np.repeat(np.repeat(pixels, 2, axis=-2), 2, axis=-1)[..., None]
