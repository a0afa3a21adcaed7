"""T2I-Adapter: features of a control image that are added to a U-Net's encoder (Mou et al. 2023)."""

import dataclasses

import flax.linen as nn
import jax

from jaxdiff.errors import expect, positive
from jaxdiff.models.layers import Conv
from jaxdiff.models.resampling import resample, to_patches
from jaxdiff.typing import Features, Images


@dataclasses.dataclass(frozen=True)
class AdapterStage:
    """One stage of a `T2IAdapter`, which gives one map of features.

    Attributes:
      width: channels.
      down: the stage begins with a mean over 2 x 2 pixels.
    """

    width: int
    down: bool = False

    def __post_init__(self):
        positive(self, "width")


class T2IAdapter(nn.Module):
    """T2I-Adapter: patches of the control image through stages of residual blocks. It does not read the noisy data.

    | kind | patch | stages |
    |---|---|---|
    | full, Stable Diffusion 1 | 8 | 320, 640 down, 1280 down, 1280 down |
    | full, SDXL | 16 | 320, 640, 1280 down, 1280 |
    | light | 8 | 320, 640 down, 1280 down, 1280 down |

    Attributes:
      stages: from the finest resolution to the coarsest.
      patch: side of the squares of pixels that become the channels of one position.
      blocks: residual blocks in each stage (2 in full adapters, 4 in light ones).
      light: blocks work on a quarter of the channels, between two convolutions of size 1.
      dtype: in which convolutions compute.
    """

    stages: tuple[AdapterStage, ...]
    patch: int = 8
    blocks: int = 2
    light: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        positive(self, "patch", "blocks")
        expect(len(self.stages) > 0, "stages", self.stages, "at least one stage", "give an AdapterStage")
        super().__post_init__()

    @nn.compact
    def __call__(self, image: Images) -> list[Features]:
        """One map of features for each stage, from a control image with values in [0, 1].

        Raises:
          UserError: the sides of the image are no multiples of those of the coarsest positions.
        """
        size, factor = image.shape[1:3], self.patch * 2 ** sum(stage.down for stage in self.stages)
        fix = "resize the control image to the size of the generated image"
        expect(not any(side % factor for side in size), "control image", size, f"multiples of {factor}", fix)
        h = to_patches(image, self.patch)
        if not self.light:
            h = Conv(self.stages[0].width, dtype=self.dtype, name="conv_in")(h)
        features = []
        for i, stage in enumerate(self.stages):
            h = Stage(stage, self.blocks, self.light, self.dtype, name=f"stage_{i}")(h)
            features.append(h)
        return features


class Stage(nn.Module):
    """The module of an `AdapterStage`."""

    stage: AdapterStage
    blocks: int
    light: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, h: Images) -> Features:
        h = resample(h, "down" if self.stage.down else "none")
        width = self.stage.width // (4 if self.light else 1)
        if self.light or h.shape[-1] != width:
            h = Conv(width, size=1, dtype=self.dtype, name="conv_in")(h)
        for i in range(self.blocks):
            branch = jax.nn.relu(Conv(width, dtype=self.dtype, name=f"block_{i}_conv_0")(h))
            h = h + Conv(width, size=3 if self.light else 1, dtype=self.dtype, name=f"block_{i}_conv_1")(
                branch
            )
        return Conv(self.stage.width, size=1, dtype=self.dtype, name="conv_out")(h) if self.light else h
