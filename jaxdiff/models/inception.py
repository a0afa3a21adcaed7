"""InceptionV3 in the form of the FID: the network of TensorFlow's graph of 2015-12-05 (Szegedy et al. 2016).

The FID is defined by this graph (Heusel et al. 2017). It differs from torchvision's InceptionV3: averages of 3 x 3
pixels do not count the padding, the last block takes maxima instead of averages, and there are 1008 classes.
`jaxdiff.interop.inception` fills it with published weights.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.errors import expect
from jaxdiff.models.layers import BatchNorm, Conv, Dense
from jaxdiff.typing import Array, Features, Float, Images

SIZE, CLASSES = 299, 1008
"""Side of the images in pixels; number of classes."""

SPATIAL_CHANNELS = 7
"""Channels of the spatial features (Nash et al. 2021; Dhariwal & Nichol 2021)."""

EPS = 1e-3

BORDER: Any = ((1, 1), (1, 1))
"""Rows and columns around the image in pools of 3 x 3 pixels."""


class InceptionOutputs(NamedTuple):
    """What the network says about images.

    Attributes:
      pool: means over all pixels of the last block: the features of the FID, 2048 of them.
      spatial: the first 7 channels of the first branch of the third 17 x 17 block, pixel by pixel: the 2023 features
        of the sFID. TensorFlow's graph calls this branch "mixed_6/conv".
      logits: of the classes without the bias, as the inception score is computed (Salimans et al. 2016).
      biased_logits: of the classes.
    """

    pool: Float[Array, "batch channels"]
    spatial: Float[Array, "batch spatial"]
    logits: Float[Array, "batch classes"]
    biased_logits: Float[Array, "batch classes"]


@dataclasses.dataclass(frozen=True)
class Step:
    """A convolution of a branch: channels, height and width of the kernel, stride, and whether it pads."""

    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm with stored statistics, ReLU."""

    step: Step

    @nn.compact
    def __call__(self, x: Images) -> Features:
        step, padding = self.step, None if self.step.padded else (0, 0)
        x = Conv(step.width, step.kernel, step.stride, padding, bias=False, name="conv")(x)
        return jax.nn.relu(BatchNorm(EPS, name="norm")(x))


def average_pool(x: Images) -> Features:
    """Means of 3 x 3 pixels, those beyond the border not counted."""
    return nn.avg_pool(x, (3, 3), padding=BORDER, count_include_pad=False)


def max_pool(x: Images) -> Features:
    """Maxima of 3 x 3 pixels."""
    return nn.max_pool(x, (3, 3), padding=BORDER)


def shrink(x: Images) -> Features:
    """Maxima of 3 x 3 pixels at every second one, without padding."""
    return nn.max_pool(x, (3, 3), (2, 2))


POOLS = {"average": average_pool, "max": max_pool, "shrink": shrink}


@dataclasses.dataclass(frozen=True)
class Branch:
    """A branch of a block: an optional pool, steps one after the other, and last steps side by side.

    Attributes:
      name: in the parameters; step i of the steps is ``NAME_{i}``, of the last ones ``NAME_last_{i}``.
      steps: one after the other.
      last: each of the result of `steps`, joined by channels.
      pool: a key of `POOLS`, before the steps.
    """

    name: str
    steps: tuple[Step, ...] = ()
    last: tuple[Step, ...] = ()
    pool: str | None = None


class Block(nn.Module):
    """Branches side by side, joined by channels."""

    branches: tuple[Branch, ...]

    @nn.compact
    def __call__(self, x: Images) -> Features:
        return jnp.concatenate([part for branch in self.branches for part in self._parts(branch, x)], axis=-1)

    @nn.nowrap
    def _parts(self, branch: Branch, x: Images) -> list[Features]:
        x = POOLS[branch.pool](x) if branch.pool else x
        for i, step in enumerate(branch.steps):
            x = ConvNorm(step, name=f"{branch.name}_{i}")(x)
        last = [ConvNorm(step, name=f"{branch.name}_last_{i}")(x) for i, step in enumerate(branch.last)]
        return last or [x]


def block_35(pooled: int) -> tuple[Branch, ...]:
    """A block of 35 x 35 pixels (Szegedy et al. 2016, figure 5)."""
    return (
        Branch("one", (Step(64),)),
        Branch("five", (Step(48), Step(64, (5, 5)))),
        Branch("double", (Step(64), Step(96, (3, 3)), Step(96, (3, 3)))),
        Branch("pooled", (Step(pooled),), pool="average"),
    )


def block_17(middle: int) -> tuple[Branch, ...]:
    """A block of 17 x 17 pixels with kernels of one row or one column (figure 6)."""
    row, column = (1, 7), (7, 1)
    rest = (Step(middle, column), Step(middle, row), Step(middle, column), Step(192, row))
    return (
        Branch("one", (Step(192),)),
        Branch("seven", (Step(middle), Step(middle, row), Step(192, column))),
        Branch("double", (Step(middle), *rest)),
        Branch("pooled", (Step(192),), pool="average"),
    )


def block_8(pool: str) -> tuple[Branch, ...]:
    """A block of 8 x 8 pixels, whose branches end in a row and a column side by side (figure 7)."""
    ends = (Step(384, (1, 3)), Step(384, (3, 1)))
    return (
        Branch("one", (Step(320),)),
        Branch("three", (Step(384),), ends),
        Branch("double", (Step(448), Step(384, (3, 3))), ends),
        Branch("pooled", (Step(192),), pool=pool),
    )


def _half(width: int) -> Step:
    return Step(width, (3, 3), 2, padded=False)


BLOCKS: dict[str, tuple[Branch, ...]] = {
    "stem_0": (Branch("only", (_half(32), Step(32, (3, 3), padded=False), Step(64, (3, 3)))),),
    "stem_1": (Branch("only", (Step(80), Step(192, (3, 3), padded=False)), pool="shrink"),),
    "stem_2": (Branch("only", pool="shrink"),),
    "mixed_0": block_35(32),
    "mixed_1": block_35(64),
    "mixed_2": block_35(64),
    "mixed_3": (
        Branch("three", (_half(384),)),
        Branch("double", (Step(64), Step(96, (3, 3)), _half(96))),
        Branch("pooled", pool="shrink"),
    ),
    "mixed_4": block_17(128),
    "mixed_5": block_17(160),
    "mixed_6": block_17(160),
    "mixed_7": block_17(192),
    "mixed_8": (
        Branch("three", (Step(192), _half(320))),
        Branch("seven", (Step(192), Step(192, (1, 7)), Step(192, (7, 1)), _half(192))),
        Branch("pooled", pool="shrink"),
    ),
    "mixed_9": block_8("average"),
    "mixed_10": block_8("max"),
}
"""The blocks in their order. Those that are mixed have the numbers of TensorFlow's graph."""

SPATIAL = "mixed_6"
"""The block whose first branch is the spatial features."""


class InceptionV3(nn.Module):
    """InceptionV3 of the FID, from images of 299 x 299 pixels with values in [-1, 1]."""

    @nn.compact
    def __call__(self, x: Images) -> InceptionOutputs:
        """The outputs.

        Raises:
          UserError: the images have another size.
        """
        fix = "resize them with a profile of jaxdiff.evaluation.features.profiles"
        expect(x.shape[1:] == (SIZE, SIZE, 3), "images", x.shape[1:], f"{(SIZE, SIZE, 3)}", fix)
        spatial = x
        for name, branches in BLOCKS.items():
            x = Block(branches, name=name)(x)
            spatial = x[..., :SPATIAL_CHANNELS] if name == SPATIAL else spatial
        pool = jnp.mean(x, axis=(1, 2))
        logits = Dense(CLASSES, bias=False, name="classes")(pool)
        bias: Any = self.param("classes_bias", nn.initializers.zeros, (CLASSES,))
        flat = spatial.reshape(x.shape[0], -1)
        return InceptionOutputs(pool, flat, logits, logits + bias[None])
