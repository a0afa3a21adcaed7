"""U-Nets of Stable Diffusion: what a published one consists of, and the names of its tensors.

A layout comes from a `config.json` (`stable_diffusion_unet_config`), from the shapes of the tensors
(`stable_diffusion_unet_shapes`) or from a run (`stable_diffusion_unet_export`). It holds the network, and what a
conditioner needs to drive it.

>>> layout = unet_layout(config)  # or detect_layout(tensors)
>>> conditioner = Conditioner(layout.noise, conditions, concatenated, layout.mapping)
>>> denoiser = Denoiser(layout.network, conditioner, process, parameterization)
>>> params = to_params(entries(layout), tensors, shapes_of(denoiser))
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal

from jaxdiff.conditioning.vector import NoiseLevel, VectorMlp
from jaxdiff.errors import UserError
from jaxdiff.interop import diffusers, guided_diffusion
from jaxdiff.interop.mapping import DENSE, SAME, Entry, dense
from jaxdiff.models.unet import UNet

Naming = Literal["diffusers", "original"]
"""The names of diffusers' folders, or those of the original single files (``input_blocks.1.0.in_layers.0``)."""

Mapped = Literal["text_time", "projection"]
"""What `UnetLayout.mapping` reads. "text_time": the pooled text and the sizes of SDXL (`addition_embed_type`).
"projection": a vector such as the noisy image embedding of Stable unCLIP (`class_embed_type`)."""

NOISE_TABLE, GUIDANCE = "conditioner/parts_source/noise/table", "guidance"

STEMS: dict[Naming, str] = {"diffusers": "conv_in.weight", "original": "input_blocks.0.0.weight"}
"""The first convolution in each naming, by which a file's naming is known."""


@dataclasses.dataclass(frozen=True)
class UnetLayout:
    """A U-Net of Stable Diffusion, and the conditions that it needs.

    Attributes:
      network: the network.
      noise: the conditioner's module of the noise level.
      in_channels: channels of the network's input: the latents, followed by those of spatial conditions (9 in
        inpainting, 8 in InstructPix2Pix, 7 in the x4 upscaler).
      context_width: channels of the tokens.
      mapping: the conditioner's module for concatenated vectors; None if there is none.
      mapped: what these vectors are; None without `mapping`.
      mapped_width: their length together: 2816 in SDXL, 2560 in its refiner; None without `mapping`.
      size_frequencies: sine and cosine pairs of each of SDXL's sizes; None unless they are mapped.
      noise_classes: noise levels of the low-resolution image, each of which has a learned vector that is added to the
        noise level's (x4 upscaler: 1000); None without such a table.
      guidance_width: length of an embedded guidance scale, which is mapped without bias and added to the Fourier
        features of the noise level (latent consistency models: 256); None without it.
    """

    network: UNet
    noise: NoiseLevel
    in_channels: int
    context_width: int
    mapping: VectorMlp | None = None
    mapped: Mapped | None = None
    mapped_width: int | None = None
    size_frequencies: int | None = None
    noise_classes: int | None = None
    guidance_width: int | None = None


def entries(
    layout: UnetLayout,
    naming: Naming = "diffusers",
    noise_table: str = NOISE_TABLE,
    guidance: str = GUIDANCE,
) -> Iterator[Entry]:
    """The mapping of the tensors, for a denoiser with this layout's network, noise and mapping.

    Args:
      layout: what the file or folder contains.
      naming: the names in it, without a prefix such as ``model.diffusion_model.``.
      noise_table: path of the table with a vector for each of `noise_classes`.
      guidance: name of the condition for the guidance scale: a `Continuous` without frequencies, before the mapping.
    """
    if naming == "original":
        yield from guided_diffusion.entries(layout.network, "3HC")
        table, mapping = "label_emb.weight", ("label_emb.0.0", "label_emb.0.2")
    else:
        yield from diffusers.entries(layout.network)
        kind = "add" if layout.mapped == "text_time" else "class"
        table = "class_embedding.weight"
        mapping = (f"{kind}_embedding.linear_1", f"{kind}_embedding.linear_2")
        projection = ("time_embedding.cond_proj.weight",)
        yield Entry(f"conditioner/parts_{guidance}/kernel", projection, DENSE)
    yield Entry(noise_table, (table,), SAME)
    for i in range(2):
        yield from dense(f"conditioner/mapping/dense_{i}", mapping[i])


def naming_of(names: Iterable[str]) -> Naming:
    """The naming of a U-Net's tensors.

    Raises:
      UserError: the names are those of no U-Net.
    """
    names = set(names)
    for naming, stem in STEMS.items():
        if stem in names:
            return naming
    shown = ", ".join(sorted(names)[:3]) or "no tensors"
    raise UserError(
        f"--from: expected the tensors of a U-Net, {' or '.join(STEMS.values())}, got {shown}. "
        "Fix: name a file or folder that contains the U-Net of Stable Diffusion"
    )
