"""The network's input and output at every resolution: NCSN++'s progressive paths (Song et al. 2021, appendix H.1)."""

from typing import Literal

import flax.linen as nn

from jaxdiff.models.interface import Grid
from jaxdiff.models.layers import Conv
from jaxdiff.models.resampling import border, decimate, resample
from jaxdiff.typing import Features, Images

InputPath = Literal["none", "skip", "residual"]
OutputPath = Literal["none", "skip"]


class ResidualInput(nn.Module):
    """The input path "residual": its features at half the resolution, by a 3 x 3 convolution and the filter.

    The convolution is evaluated beyond the border as well, where the images themselves are 0, so that the filter has
    all its inputs.
    """

    width: int
    taps: tuple[float, ...]
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images) -> Features:
        before, after = border(self.taps)
        h = Conv(self.width, padding=(1 + before, 1 + after), dtype=self.dtype, name="conv")(x)
        return decimate(h, self.taps)


class InputSkip(nn.Module):
    """The input path "skip": the filtered input at half the resolution, and a 1 x 1 convolution of it."""

    width: int
    taps: tuple[float, ...]
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images) -> tuple[Grid, Grid]:
        """The image for the next level, and its features."""
        x = resample(x, "down", self.taps)
        return x, Conv(self.width, size=1, dtype=self.dtype, name="conv")(x)
