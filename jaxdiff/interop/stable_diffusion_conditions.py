"""Conditions of Stable Diffusion's variants besides the text: sizes, and images to edit, complete or enlarge."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxdiff.conditioning.condition import Condition
from jaxdiff.conditioning.continuous import Continuous, ImageSize
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.latent import LatentImage, MaskedImage
from jaxdiff.conditioning.noisy import NoiseAugmented
from jaxdiff.conditioning.noisy_embedding import NoiseAugmentedEmbedding
from jaxdiff.conditioning.vector import Sinusoid, StepTable
from jaxdiff.conditioning.vector_embedding import PlainVector
from jaxdiff.errors import UserError, expect
from jaxdiff.interop.stable_diffusion_unet import UnetLayout
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.labels import StepIndex

IMAGE = "source"
"""The name of the image to edit, complete or enlarge; examples hold the result as "image"."""

EMBEDDING = "image"
"""The name of CLIP's embedding of an image, which Stable unCLIP reads."""

AESTHETIC_SCORE, NEGATIVE_SCORE = 6.0, 2.5
"""Of SDXL's refiner: the default score, and the one that guidance leads away from."""

HIGHEST_NOISE, NOISE = 350, 20
"""Steps of noise on the small image of the x4 upscaler: the most that it has seen, and the default in sampling."""


@dataclasses.dataclass(frozen=True)
class Extra:
    """Conditions besides the text.

    Attributes:
      conditions: by name.
      concatenated: names of the conditions whose vectors are concatenated and mapped, in their order.
    """

    conditions: Mapping[str, Condition]
    concatenated: tuple[str, ...] = ()


def extra_conditions(
    layout: UnetLayout,
    pooled: int,
    factor: int,
    low_res: VariancePreserving | None = None,
    noising: VariancePreserving | None = None,
) -> Extra:
    """The conditions that a U-Net needs besides the text.

    Args:
      layout: the U-Net.
      pooled: length of the text encoder's pooled vector.
      factor: pixels along the side of one latent.
      low_res: the noise process of the image that the x4 upscaler enlarges.
      noising: that of the image embedding that Stable unCLIP reads.

    Raises:
      UserError: the U-Net needs a condition that is unknown here.
    """
    images = _images(layout, factor, low_res)
    if layout.mapped == "projection" and noising is not None:
        return Extra({EMBEDDING: _embedding(layout, noising), **images}, (EMBEDDING,))
    sizes = _sizes(layout, pooled)
    return Extra({**sizes, **images}, ("text", *sizes) if sizes else ())


def _embedding(layout: UnetLayout, noising: VariancePreserving) -> Condition:
    """A noisy image embedding, and the sinusoid of its noise level, of as many channels."""
    size, rest = divmod(layout.mapped_width or 0, 2)
    expect(rest == 0 and size % 2 == 0, "projection_class_embeddings_input_dim", layout.mapped_width,
           "twice the even length of an image embedding", "use a model of Stable unCLIP")  # fmt: skip
    schedule: Any = noising.schedule
    steps = schedule.steps
    part, level = PlainVector(size, drop_rate=0.1), Sinusoid(size // 2)
    return NoiseAugmentedEmbedding(part, level, noising, level=1 / steps, label=StepIndex(steps))


def _sizes(layout: UnetLayout, pooled: int) -> dict[str, Condition]:
    """Six numbers in SDXL, and in its refiner five, of which the last is a score."""
    if layout.mapped is None:
        return {}
    frequencies, width = layout.size_frequencies or 1, (layout.mapped_width or 0) - pooled
    count = width // (2 * frequencies)
    if layout.mapped != "text_time" or count not in (5, 6) or width % (2 * frequencies):
        raise UserError(
            f"--from: expected a U-Net with the sizes of SDXL, got a vector of {layout.mapped_width} channels for "
            f"{pooled} of a pooled text. Fix: use a model of Stable Diffusion 1, 2 or XL"
        )
    options = {"width": None, "frequencies": frequencies, "null": "none"}
    found: dict[str, Condition] = {
        "original_size": ImageSize(frequencies=frequencies),
        "crop": Continuous(2, default=(0.0, 0.0), **options),
    }
    if count == 6:
        return found | {"target_size": ImageSize(frequencies=frequencies)}
    options |= {"default": AESTHETIC_SCORE, "null": "value", "null_value": NEGATIVE_SCORE}
    return found | {"aesthetic_score": Continuous(None, **options)}


def _images(layout: UnetLayout, factor: int, low_res: VariancePreserving | None) -> dict[str, Condition]:
    """Images appended to the latents."""
    latents = layout.network.out_channels
    added = layout.in_channels - latents
    if added == 0:
        return {}
    if added == latents + 1:
        return {IMAGE: MaskedImage(factor=factor)}
    if added == latents:
        return {IMAGE: LatentImage(factor=1 / factor)}
    if added == 3 and layout.noise_classes is not None and low_res is not None:
        steps = layout.noise_classes
        table, label = StepTable(steps, layout.noise.width), StepIndex(steps)
        highest, shown = ((step + 1) / steps for step in (HIGHEST_NOISE, NOISE))
        return {IMAGE: NoiseAugmented(ImageCondition(3), table, low_res, highest, shown, label)}
    raise UserError(
        f"--from: expected {latents}, {latents + 1} or 3 channels of an image besides the latents, got {added}. "
        "Fix: use a model of Stable Diffusion, for inpainting, InstructPix2Pix or the x4 upscaler"
    )
