"""A small convolutional classifier of images."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.errors import positive
from jaxdiff.models.layers import Conv, Dense, GroupNorm
from jaxdiff.typing import Array, Float, Images


class ConvClassifier(nn.Module):
    """Convolutions with group norm at falling sizes and rising widths, the mean over pixels, and two dense layers.

    Attributes:
      classes: number of classes.
      width: channels of the first level.
      levels: number of levels.
      features: width of the vector before the classes.
    """

    classes: int
    width: int = 32
    levels: int = 3
    features: int = 64

    def __post_init__(self):
        positive(self, "classes", "width", "levels", "features")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Images) -> tuple[Float[Array, "batch features"], Float[Array, "batch classes"]]:
        """The vectors before the classes, and the logits, of images in [-1, 1]."""
        for i in range(self.levels):
            x = Conv(self.width << i, stride=1 if i == 0 else 2, name=f"conv_{i}")(x)
            x = GroupNorm(name=f"norm_{i}")(x)
        vectors = jax.nn.silu(Dense(self.features, name="vector")(jnp.mean(x, axis=(1, 2))))
        return vectors, Dense(self.classes, name="classes")(vectors)
