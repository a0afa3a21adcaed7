"""What the parts of a U-Net share: options of its blocks, inputs of a forward pass, and the interface of a part."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

import flax.struct

from jaxdiff.embeddings import ImagePrompt, Tokens
from jaxdiff.errors import one_of, positive
from jaxdiff.models.layers import GroupNorm
from jaxdiff.models.resampling import check_taps
from jaxdiff.typing import Array, Features, Float, Images

Modulation = Literal["scale_shift", "shift"]

Grid = Float[Array, "batch _ _ _"]
"""Features on a grid of pixels, of any resolution and width."""


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """Options that all residual blocks of a network share.

    Attributes:
      groups: upper bound on the number of groups in a group norm.
      min_group_size: lower bound on the number of channels in a group.
      eps: added to the variance in group norms.
      modulation: how a block adapts to the conditioning vector. "scale_shift" scales and shifts the second norm's
        output (ADM), "shift" adds to its input (DDPM).
      skip_scale: factor of every sum of two branches; ``sqrt(1/2)`` in NCSN++ and SR3.
      resample_taps: filter of resampling, see `resampling.resample`.
      project_resampled: a 1 x 1 convolution on the skip of every block that resamples, whatever its width (DDPM++).
    """

    groups: int = 32
    min_group_size: int = 4
    eps: float = 1e-5
    modulation: Modulation = "scale_shift"
    skip_scale: float = 1.0
    resample_taps: tuple[float, ...] = (1.0, 1.0)
    project_resampled: bool = False

    def __post_init__(self):
        positive(self, "groups", "min_group_size", "eps", "skip_scale")
        one_of(self, "modulation", ("scale_shift", "shift"))
        check_taps(self.resample_taps)

    def norm(self, name: str, silu: bool = True) -> GroupNorm:
        """A group norm with these options, followed by SiLU if `silu`."""
        return GroupNorm(self.groups, self.min_group_size, silu, self.eps, name=name)


@flax.struct.dataclass
class BlockInputs:
    """All inputs of the blocks of one forward pass except the features.

    Attributes:
      vector: conditioning vector after its SiLU.
      tokens: sequence for cross-attention; None if no condition gives one.
      image_prompts: tokens of images by name, each with its own keys and values; None if no condition gives some.
      options: options of the residual blocks.
      dropout: dropout rate in residual blocks; 0 outside training.
      train: whether dropout is on.
      remat: whether a part that is not yet inside a rematerialised block recomputes its own blocks.
      dtype: in which convolutions and attention compute.
    """

    vector: Float[Array, "batch embed"]
    tokens: Tokens | None = None
    image_prompts: Mapping[str, ImagePrompt] | None = None
    options: BlockOptions = flax.struct.field(pytree_node=False, default=BlockOptions())
    dropout: float = flax.struct.field(pytree_node=False, default=0.0)
    train: bool = flax.struct.field(pytree_node=False, default=False)
    remat: bool = flax.struct.field(pytree_node=False, default=False)
    dtype: str = flax.struct.field(pytree_node=False, default="float32")


@runtime_checkable
class Part(Protocol):
    """A part of a U-Net that keeps the shape of its features: the attention of a level, or the middle.

    A part is a frozen dataclass of options, so that a config can name it. It is called inside the compact method of a
    Linen module, and the modules that it creates become children of that module.
    """

    @property
    def reads_tokens(self) -> bool:
        """Whether the part needs `BlockInputs.tokens`."""
        ...

    def check(self, width: int, field: str) -> None:
        """Raise a `UserError` about `field` if the part cannot work on `width` channels."""
        ...

    def __call__(self, h: Images, inputs: BlockInputs) -> Features:
        """Features of the same shape."""
        ...


def reads_image_prompts(part: Part | None) -> bool:
    """Whether a part reads `BlockInputs.image_prompts`; only parts that may do so have a property of this name."""
    return getattr(part, "reads_image_prompts", False)
