"""ControlNet: a trained copy of a U-Net's encoder that reads a control image, such as edges, depth or a pose."""

import itertools
from collections.abc import Mapping

import flax.linen as nn
import jax
from flax.core import FrozenDict

from jaxdiff.embeddings import Control, Embeddings, Residuals, add_residuals
from jaxdiff.errors import UserError, expect
from jaxdiff.models.interface import Grid
from jaxdiff.models.layers import Conv
from jaxdiff.models.unet import UNet
from jaxdiff.typing import Array, Features, Float, Images

OWN = ("hint", "zero_*")
"""Modules of a ControlNet that are no copies."""


class HintEncoder(nn.Module):
    """Convolutions from a control image to features at the resolution of the latents (Zhang et al. 2023, section 3.3).

    Each width after the first halves the resolution. The last convolution starts at zero.

    Attributes:
      width: channels of the output, as many as those of the stem that it is added to.
      widths: channels on the way.
    """

    width: int
    widths: tuple[int, ...] = (16, 32, 96, 256)
    dtype: str = "float32"

    @nn.compact
    def __call__(self, image: Images) -> Features:
        h = jax.nn.silu(Conv(self.widths[0], dtype=self.dtype, name="conv_in")(image))
        for i, (here, there) in enumerate(itertools.pairwise(self.widths)):
            h = jax.nn.silu(Conv(here, dtype=self.dtype, name=f"block_{i}_conv")(h))
            h = jax.nn.silu(Conv(there, stride=2, dtype=self.dtype, name=f"block_{i}_down")(h))
        return Conv(self.width, zero=True, dtype=self.dtype, name="conv_out")(h)


class ControlNet(nn.Module):
    """ControlNet (Zhang et al. 2023): a copy of the encoder and the middle of a U-Net.

    It reads the noisy data, the tokens and a control image. Its features go through convolutions of size 1, which start
    at zero, and are added to the middle and to the skips of the U-Net. It does not read `Embeddings.spatial`, so that
    one network serves text-to-image and inpainting models.

    Attributes:
      network: the U-Net whose encoder and middle are copied. Its decoder is not used.
      noise: module from noise labels to `Embeddings` with a vector, such as `NoiseLevel`, as published ControlNets have
        one. None: the vector is that of the U-Net, which conditions such as a class label are a part of.
      mapping: module from the concatenated vectors of the `Conditioner` to a vector, as in SDXL; None without these.
      hint_widths: see `HintEncoder.widths`; they decide the size of the control image, see `factor`.
    """

    network: UNet
    noise: nn.Module | None = None
    mapping: nn.Module | None = None
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)

    def __post_init__(self):
        expect(
            len(self.hint_widths) > 0 and min(self.hint_widths) > 0,
            "hint_widths",
            self.hint_widths,
            "numbers of channels",
            "give at least one",
        )
        alone = self.noise is None and self.mapping is not None
        expect(not alone, "mapping", self.mapping, "None without noise", "give noise as well")
        # A module that stands in two places, such as the U-Net that is controlled, would share its parameters.
        for field in ("network", "noise", "mapping"):
            part = getattr(self, field)
            setattr(self, field, part if part is None else part.clone())
        super().__post_init__()

    @property
    def factor(self) -> int:
        """The size of the control image over that of the data."""
        return self.network.patch * 2 ** (len(self.hint_widths) - 1)

    @nn.compact
    def __call__(self, x: Images, embeddings: Embeddings, image: Grid, *, train: bool) -> Residuals:
        """The residuals for a U-Net of the same encoder.

        Args:
          x: scaled noisy data.
          embeddings: `vector_inputs` are required, or `vector` without `noise`; and `tokens` if the network reads them.
          image: control image with values in [0, 1].
          train: whether dropout is on.

        Raises:
          UserError: the control image has another size.
        """
        size = image.shape[1:3]
        expected = tuple(self.factor * side for side in x.shape[1:3])
        fix = "resize the control image to the size of the generated image"
        expect(size == expected, "control image", size, f"{expected} pixels", fix)
        net = self.network
        read = Embeddings(vector=self._vector(embeddings), tokens=embeddings.tokens)
        width = net.stem_width or net.levels[0].width
        hint = HintEncoder(width, self.hint_widths, net.dtype, name="hint")(image)
        h, skips = net.encode(net.stem_input(x), net.block_inputs(read, train), {"stem": hint})

        def zero(name: str, features: Features) -> Features:
            return Conv(features.shape[-1], size=1, zero=True, dtype=net.dtype, name=f"zero_{name}")(features)

        return Residuals({"middle": zero("middle", h)}, {name: zero(name, h) for name, h in skips.items()})

    def _vector(self, embeddings: Embeddings) -> Float[Array, "batch features"] | None:
        if self.noise is None:
            return embeddings.vector
        inputs = embeddings.vector_inputs
        if inputs is None or (inputs.concatenated is None) != (self.mapping is None):
            raise UserError(
                f"mapping={self.mapping}: expected one if and only if the model's conditioner has one, got another. "
                "Fix: use a ControlNet that was made for this model"
            )
        vector = self.noise(inputs.noise_label).vector
        return vector if self.mapping is None else vector + self.mapping(inputs.concatenated)


class Controlled(nn.Module):
    """A U-Net with ControlNets, whose residuals are multiplied by the scale of their control and added.

    The parameters of the U-Net keep their paths, and those of a ControlNet follow under `controls_NAME`.

    Attributes:
      network: the U-Net.
      controls: ControlNets by name. Each reads the control of its name, see
        `jaxdiff.conditioning.control.ControlImage`.
    """

    network: UNet
    controls: Mapping[str, ControlNet]

    def __post_init__(self):
        # Sorted: configs come back from JSON in another order. Frozen: modules are static arguments of jit.
        self.controls = FrozenDict({name: self.controls[name].clone() for name in sorted(self.controls)})
        super().__post_init__()

    def setup(self):
        nn.share_scope(self, self.network)

    @property
    def decoder_blocks(self) -> int:
        """Number of blocks of the decoder, see `UNet`."""
        return self.network.decoder_blocks

    def __call__(self, x: Images, embeddings: Embeddings, *, train: bool) -> Features:
        """As `UNet`; `embeddings.controls` has an image for each of `controls`."""
        given = embeddings.controls or {}
        expect(
            set(given) == set(self.controls),
            "controls",
            sorted(given),
            f"a control for each of {', '.join(self.controls)}",
            "add a ControlImage for each of them to the conditioner",
        )
        found = [embeddings.residuals] if embeddings.residuals is not None else []
        for name, network in self.controls.items():
            residuals = network(x, embeddings, given[name].image, train=train)
            found.append(_scaled(residuals, given[name]))
        return self.network(x, embeddings.replace(controls=None, residuals=add_residuals(found)), train=train)


def uncontrolled(network: nn.Module) -> nn.Module:
    """The network without its ControlNets."""
    return network.network if isinstance(network, Controlled) else network


def origin(path: str) -> str:
    """The parameter of a denoiser that a parameter of a ControlNet, at this path within it, starts as a copy of."""
    embeds_vector = path.startswith(("noise/", "mapping/"))
    return f"{'conditioner' if embeds_vector else 'network'}/{path}"


def _scaled(residuals: Residuals, control: Control) -> Residuals:
    """The residuals times the control's scale, which may differ between examples."""
    scale = control.scale[:, None, None, None]
    return jax.tree.map(lambda features: scale.astype(features.dtype) * features, residuals)
