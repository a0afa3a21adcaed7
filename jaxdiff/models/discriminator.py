"""Patch discriminator: scores of overlapping squares of an image (Isola et al. 2017, "pix2pix")."""

import flax.linen as nn
import jax

from jaxdiff.errors import positive
from jaxdiff.models.layers import Conv, GroupNorm
from jaxdiff.typing import Features, Images


class PatchDiscriminator(nn.Module):
    """Convolutions of size 4 to scores [batch, rows, columns, 1]: high for real squares, low for made ones.

    The norms are group norms where the paper has batch norms, so that the score of an image does not depend on others.

    Attributes:
      width: channels after the first convolution; they double up to eight times as many.
      halvings: convolutions that halve the resolution. 3 is the paper's, whose scores see 70 x 70 pixels.
      dtype: in which convolutions compute.
    """

    width: int = 64
    halvings: int = 3
    dtype: str = "float32"

    def __post_init__(self):
        positive(self, "width", "halvings")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Images) -> Features:
        h = x
        for i in range(self.halvings + 1):
            stride = 2 if i < self.halvings else 1
            width = self.width * min(2**i, 8)
            h = Conv(width, size=4, stride=stride, padding=(1, 1), dtype=self.dtype, name=f"conv_{i}")(h)
            if i > 0:
                h = GroupNorm(silu=False, name=f"norm_{i}")(h)
            h = jax.nn.leaky_relu(h, 0.2)
        return Conv(1, size=4, padding=(1, 1), dtype=self.dtype, name="head")(h)
