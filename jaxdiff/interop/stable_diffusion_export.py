"""A run as Stable Diffusion's published files: a pipeline of diffusers, or one file in the original layout."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from jaxdiff.codecs.latent import Latent
from jaxdiff.conditioning.noisy import NoiseAugmented
from jaxdiff.conditioning.text import Text
from jaxdiff.data.joined_tokenizer import JoinedTokenizer
from jaxdiff.data.published_tokenizers import ClipTokenizer
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError
from jaxdiff.interop import (
    autoencoder_configs,
    autoencoders,
    stable_diffusion_unet,
    text_encoder_configs,
    text_encoders,
)
from jaxdiff.interop.mapping import to_pending_tensors
from jaxdiff.interop.pending import Pending
from jaxdiff.interop.published import AUTOENCODER, UNET
from jaxdiff.interop.stable_diffusion import TEXT, normalizer_entries
from jaxdiff.interop.stable_diffusion_conditions import HIGHEST_NOISE, IMAGE
from jaxdiff.interop.stable_diffusion_unet import Naming, UnetLayout
from jaxdiff.interop.stable_diffusion_unet_export import layout_of, unet_config
from jaxdiff.models.clip_text import ClipTextEncoder
from jaxdiff.models.joined_encoder import JoinedEncoder
from jaxdiff.process.gaussian import Process
from jaxdiff.typing import Params

CLASSES = {
    (False, 0): "StableDiffusionPipeline",
    (False, 3): "StableDiffusionUpscalePipeline",
    (False, 4): "StableDiffusionInstructPix2PixPipeline",
    (False, 5): "StableDiffusionInpaintPipeline",
    (True, 0): "StableDiffusionXLPipeline",
    (True, 4): "StableDiffusionXLInstructPix2PixPipeline",
    (True, 5): "StableDiffusionXLInpaintPipeline",
}
"""Pipelines of diffusers by whether they are SDXL's, and by the channels of an image besides the latents."""

DIFFUSERS = "0.42.0"
"""The version of diffusers whose pipelines and settings are written. Inpainting does not open without one."""

ABSENT = [None, None]
"""A part that a pipeline does without, in its `model_index.json`."""

Tensors = dict[str, Pending]


@dataclasses.dataclass(frozen=True)
class Exported:
    """A model in our names, ready to be written in those of others.

    Attributes:
      denoiser, codec: the model.
      params: the denoiser's parameters.
      autoencoder: the parameters of the codec's network.
    """

    denoiser: Denoiser
    codec: Latent
    params: Params
    autoencoder: Params

    @functools.cached_property
    def arrays(self) -> dict[str, Any]:
        """The denoiser's parameters by their paths."""
        return _flat(self.params)

    @functools.cached_property
    def layout(self) -> UnetLayout:
        """The U-Net."""
        return layout_of(self.denoiser, self.params)

    @property
    def encoders(self) -> tuple[ClipTextEncoder, ...]:
        """The text encoders.

        Raises:
          UserError: the model has none, or other ones than CLIP's.
        """
        found = _encoders(self.denoiser)
        if not found or not all(isinstance(each, ClipTextEncoder) for each in found):
            got = type(found[0]).__name__ if found else "none"
            raise UserError(
                f"--to: expected a run with CLIP's text encoders, got {got}. Fix: keep the workdir as it is"
            )
        return found

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """The tokenizer of each text encoder."""
        text: Any = self.denoiser.conditioner.conditions["text"]
        joined = text.tokenizer
        return joined.tokenizers if isinstance(joined, JoinedTokenizer) else (joined,)

    @property
    def is_refiner(self) -> bool:
        """Whether it is SDXL's refiner, whose only text encoder is SDXL's second."""
        return "aesthetic_score" in self.denoiser.conditioner.conditions

    def unet(self, naming: Naming) -> Tensors:
        """The U-Net's tensors."""
        others = (f"{TEXT}/", *(entry.path for entry in normalizer_entries()))
        arrays = {path: array for path, array in self.arrays.items() if not path.startswith(others)}
        return to_pending_tensors(stable_diffusion_unet.entries(self.layout, naming), arrays)

    def vae(self, naming: autoencoders.Naming) -> Tensors:
        """The autoencoder's tensors."""
        network: Any = self.codec.network
        return to_pending_tensors(autoencoders.entries(network, naming), _flat(self.autoencoder))

    def text(self, number: int, layout: str) -> Tensors:
        """The tensors of a text encoder."""
        arrays = {
            path.removeprefix(f"{TEXT}/"): array
            for path, array in self.arrays.items()
            if path.startswith(f"{TEXT}/")
        }
        prefix = f"encoder_{number}/" if len(self.encoders) > 1 else ""
        own = {path.removeprefix(prefix): array for path, array in arrays.items() if path.startswith(prefix)}
        return text_encoders.encoder_pending_tensors(self.encoders[number], own, layout)


def is_stable_diffusion(denoiser: Denoiser) -> bool:
    """Whether a model reads a text by CLIP's text encoders, as all of Stable Diffusion do."""
    found = _encoders(denoiser)
    return bool(found) and all(isinstance(each, ClipTextEncoder) for each in found)


def _encoders(denoiser: Denoiser) -> tuple[Any, ...]:
    text = denoiser.conditioner.conditions.get("text")
    if not isinstance(text, Text):
        return ()
    return text.encoder.encoders if isinstance(text.encoder, JoinedEncoder) else (text.encoder,)


def single_file(model: Exported) -> Tensors:
    """All tensors in the original layout, as single files have them."""
    found = {UNET + name: each for name, each in model.unet("original").items()}
    found |= {AUTOENCODER + name: each for name, each in model.vae(autoencoders.SINGLE_FILE).items()}
    sdxl = model.layout.mapped == "text_time"
    for i, encoder in enumerate(model.encoders):
        stem = f"conditioner.embedders.{i}." if sdxl else "cond_stage_model."
        openai = encoder.activation == "quick_gelu"
        prefix, layout = (f"{stem}transformer.", "clip") if openai else (f"{stem}model.", "open_clip")
        found |= {prefix + name: each for name, each in model.text(i, layout).items()}
    return found


def folder(model: Exported, image_size: tuple[int, int]) -> Iterator[tuple[str, Mapping[str, Any], Tensors]]:
    """For each network of a diffusers pipeline its folder, its `config.json` and its tensors.

    Args:
      model: the model.
      image_size: height and width of the images.
    """
    network: Any = model.codec.network
    height, width = (size // network.factor for size in image_size)
    latents = height if height == width else [height, width]
    yield "unet", unet_config(model.layout, latents), model.unet("diffusers")
    yield (
        "vae",
        autoencoder_configs.model_config(model.codec, max(image_size)),
        model.vae(autoencoders.Naming()),
    )
    for i, (encoder, tokenizer) in enumerate(zip(model.encoders, model.tokenizers, strict=True)):
        name = numbered("text_encoder", i + model.is_refiner)
        pad = tokenizer.padding if isinstance(tokenizer, ClipTokenizer) else None
        yield name, text_encoder_configs.clip_config(encoder, pad), model.text(i, "clip")


def model_index(model: Exported) -> dict[str, Any]:
    """The `model_index.json` of the pipeline, without the class of its scheduler.

    Raises:
      UserError: diffusers has no pipeline for such a model.
    """
    layout, sdxl = model.layout, model.layout.mapped == "text_time"
    if layout.mapped == "projection":
        raise UserError(
            "--workdir: expected a model with a text alone, got a stage of Stable unCLIP. "
            "Fix: give the folder of the whole run, which has the other stages"
        )
    added = layout.in_channels - layout.network.out_channels
    if (sdxl, added) not in CLASSES:
        raise UserError(
            f"--to: expected a model for which diffusers has a pipeline, got {layout.in_channels} input channels. "
            "Fix: keep the workdir as it is"
        )
    name = CLASSES[sdxl, added]
    parts: dict[str, Any] = {
        "_diffusers_version": DIFFUSERS,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", autoencoder_configs.model_config(model.codec)["_class_name"]],
    }
    for i, encoder in enumerate(model.encoders):
        number = i + model.is_refiner
        projected = encoder.projection is not None and sdxl
        cls = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
        parts[numbered("text_encoder", number)] = ["transformers", cls]
        parts[numbered("tokenizer", number)] = ["transformers", "CLIPTokenizer"]
    if model.is_refiner:
        parts |= {"text_encoder": ABSENT, "tokenizer": ABSENT, "requires_aesthetics_score": True}
    if sdxl:
        zeros = model.denoiser.conditioner.conditions["text"].null == "zero"
        return {
            "_class_name": "StableDiffusionXLImg2ImgPipeline" if model.is_refiner else name, **parts,
            "force_zeros_for_empty_prompt": zeros,
        }  # fmt: skip
    nothing = {"safety_checker": ABSENT, "feature_extractor": ABSENT}
    if low_res_process(model) is not None:
        return {"_class_name": name, **parts, **nothing, "max_noise_level": HIGHEST_NOISE}
    return {"_class_name": name, **parts, **nothing, "requires_safety_checker": False}


def low_res_process(model: Exported) -> Process | None:
    """The noise process of the image that an upscaler enlarges; None in other models."""
    image = model.denoiser.conditioner.conditions.get(IMAGE)
    return image.process if isinstance(image, NoiseAugmented) else None


def numbered(name: str, number: int) -> str:
    """The name of a part of which a pipeline has several: ``tokenizer``, ``tokenizer_2``."""
    return name if number == 0 else f"{name}_{number + 1}"


def _flat(tree: Params) -> dict[str, Any]:
    """The arrays of a tree by their paths."""
    found: Any = flatten_dict(tree, sep="/")
    return found
