"""Stable Diffusion from published files: the denoiser and the codec of a model, and its parameters, not yet read."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdiff.codecs.latent import Latent, parameter_shapes
from jaxdiff.conditioning.conditioner import Conditioner, parameters_of
from jaxdiff.conditioning.latent import LatentImage
from jaxdiff.conditioning.nulls import Null
from jaxdiff.conditioning.text import Text
from jaxdiff.data.joined_tokenizer import JoinedTokenizer
from jaxdiff.data.published_tokenizers import ClipTokenizer
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError, expect
from jaxdiff.interop import (
    autoencoder_configs,
    autoencoders,
    schedulers,
    stable_diffusion_unet,
    text_encoders,
)
from jaxdiff.interop.mapping import SAME, Entry, to_pending
from jaxdiff.interop.pending import Pending
from jaxdiff.interop.published import ZERO_SNR, Part, PublishedModel
from jaxdiff.interop.stable_diffusion_conditions import EMBEDDING, IMAGE, Extra, extra_conditions
from jaxdiff.interop.stable_diffusion_unet import UnetLayout
from jaxdiff.interop.stable_diffusion_unet_config import latent_size, unet_layout
from jaxdiff.interop.stable_diffusion_unet_shapes import detect_layout
from jaxdiff.models.clip_text import ClipTextEncoder
from jaxdiff.models.joined_encoder import JoinedEncoder
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.guidance.per_condition import PerCondition
from jaxdiff.sampling.protocols import Guidance
from jaxdiff.typing import Params, Weights

TEXT = f"conditioner/{parameters_of('text')}"
"""The path of the text encoders in the denoiser's parameters."""

OPEN_CLIP = "cond_stage_model.model."
"""The prefix of Stable Diffusion 2's text encoder in a single file. The U-Net reads the output of its last block but
one."""

WITHOUT_LAST = "jaxdiff.text_encoder"
"""In a single file's metadata: the file has no blocks of the text encoder that are not read."""

BETAS = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}
ZERO_SNR_SCHEDULER = {
    "_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
}  # fmt: skip
"""How a model is sampled whose last step is pure noise (Lin et al. 2023)."""

LOW_RES = {**BETAS, "beta_start": 0.0001, "beta_end": 0.02, "_class_name": "DDPMScheduler"}
"""The noise of the small image in the x4 upscaler."""

UNCLIP_GUIDANCE = 10.0
"""Guidance scale of Stable unCLIP's pipelines."""

OFFSET = {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}


@dataclasses.dataclass(frozen=True)
class Family:
    """What a single file does not say about itself.

    Attributes:
      scheduler: `scheduler_config.json` of the published folder.
      scaling_factor: of the latents.
      size: height and width of the images.
      guidance: scale in the published pipeline.
    """

    scheduler: Mapping[str, Any]
    scaling_factor: float = 0.18215
    size: int = 512
    guidance: float = 7.5


FAMILIES = {
    "sd1": Family({**BETAS, **OFFSET, "_class_name": "PNDMScheduler", "skip_prk_steps": True}),
    "sd2": Family({**BETAS, **OFFSET, "_class_name": "DDIMScheduler"}),
    "xl": Family(
        {**BETAS, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "steps_offset": 1},
        scaling_factor=0.13025, size=1024, guidance=5.0,
    ),
    "upscaler": Family({**BETAS, **OFFSET, "_class_name": "DDIMScheduler"}, scaling_factor=0.08333, guidance=9.0),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StableDiffusion:
    """A published model of Stable Diffusion as our objects.

    Attributes:
      source: its files.
      layout: its U-Net.
      encoders: its text encoders.
      denoiser: network, conditions, process and parameterization.
      scheduler: the settings of its published sampler.
      family: what is known of such models.
    """

    source: PublishedModel
    layout: UnetLayout
    encoders: tuple[ClipTextEncoder, ...]
    denoiser: Denoiser
    scheduler: Mapping[str, Any]
    family: Family

    def codec(self, weights: Weights) -> Latent:
        """The codec of the model's autoencoder, whose parameters are `weights`."""
        part = _required(self.source.autoencoder, "an autoencoder")
        if part.config:
            return autoencoder_configs.codec(part.config, weights, slices=1)
        network = autoencoders.network_of(part.tensors)
        return Latent(network, weights, scaling_factor=self.family.scaling_factor, slices=1)

    @property
    def guidance(self) -> Guidance:
        """Guidance as in the published pipeline: two scales with an image to edit (Brooks et al. 2023)."""
        if isinstance(self.denoiser.conditioner.conditions.get(IMAGE), LatentImage):
            return PerCondition((IMAGE, "text"), (1.5, self.family.guidance))
        if self.layout.mapped == "projection":
            return ClassifierFree(UNCLIP_GUIDANCE)
        return ClassifierFree(self.family.guidance)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the model was trained with."""
        part, latents = self.source.autoencoder, latent_size(self.source.unet.config)
        if latents is None or part is None:
            large = self.family is FAMILIES["sd2"] and self.scheduler["prediction_type"] == "v_prediction"
            side = 768 if large else self.family.size
            return side, side
        height, width = (size * self.codec_network.factor for size in latents)
        return height, width

    @property
    def codec_network(self) -> Any:
        """The autoencoder."""
        return _network(_required(self.source.autoencoder, "an autoencoder"))

    def pending_unet(self) -> dict[str, Pending]:
        """The parameters of the denoiser without its text encoders, by their paths.

        Raises:
          UserError: lists the tensors that do not fit.
        """
        part, abstract = self.source.unet, dict(self._abstract)
        conditioner = dict(abstract["conditioner"])
        del conditioner[parameters_of("text")]
        own = conditioner.pop(parameters_of(EMBEDDING), None)
        found = to_pending(
            unet_entries(self.layout, part.tensors), part.tensors, abstract | {"conditioner": conditioner}
        )
        if own is None:
            return found
        shapes = {"conditioner": {parameters_of(EMBEDDING): own}}
        normalizer = _required(self.source.normalizer, "an image_normalizer")
        return found | to_pending(normalizer_entries(), normalizer.tensors, shapes)

    def pending_text(self) -> dict[str, Pending]:
        """The parameters of the text encoders, by their paths below `TEXT`."""
        found: dict[str, Pending] = {}
        for i, (encoder, part) in enumerate(zip(self.encoders, self.source.texts, strict=True)):
            prefix = f"encoder_{i}/" if len(self.encoders) > 1 else ""
            pending = text_encoders.encoder_pending(encoder, part.tensors)
            found |= {prefix + path: each for path, each in pending.items()}
        return found

    def pending_autoencoder(self) -> dict[str, Pending]:
        """The parameters of the autoencoder, by their paths."""
        part, network = _required(self.source.autoencoder, "an autoencoder"), self.codec_network
        tensors = part.tensors.renamed(autoencoders.own_names(part.tensors))
        entries = autoencoders.entries(network, autoencoders.naming_of(tensors))
        return to_pending(entries, tensors, parameter_shapes(network))

    @functools.cached_property
    def _abstract(self) -> Params:
        """The shapes of the denoiser's parameters."""
        conditioner: Any = self.denoiser.conditioner
        shape = (2 ** len(self.layout.network.levels),) * 2 + (self.layout.network.out_channels,)
        x, t = jnp.zeros((1, *shape)), jnp.full((1,), 0.5)
        arguments = (x, t, conditioner.example(1, shape), conditioner.none_dropped(1))
        make = functools.partial(self.denoiser.init, train=False)
        return nn.meta.unbox(jax.eval_shape(make, jax.random.key(0), *arguments))["params"]


def of(
    model: PublishedModel,
    tokenizers: Sequence[ClipTokenizer],
    ends: Sequence[int],
    prediction: str | None = None,
) -> StableDiffusion:
    """Our objects for a published model.

    Args:
      model: its files.
      tokenizers: one for each text encoder.
      ends: the id of each tokenizer's end, at which a text is pooled where no config says it.
      prediction: what the U-Net predicts, "epsilon" or "v_prediction", where the files do not say it.

    Raises:
      UserError: the model has an option that ours lacks, or does not say what its U-Net predicts.
    """
    config = model.unet.config
    layout = unet_layout(config) if config else detect_layout(model.unet.tensors)
    family = FAMILIES[_family(model, layout)]
    scheduler = dict(model.scheduler or family.scheduler)
    if model.metadata.get(ZERO_SNR) == "true":
        scheduler = {**scheduler, **OFFSET, **ZERO_SNR_SCHEDULER}
    scheduler["prediction_type"] = prediction or _prediction(model, scheduler, layout)
    encoders = _encoders(model, layout, ends)
    conditions, extra = _conditions(model, layout, encoders, tokenizers)
    conditioner = Conditioner(layout.noise, conditions, extra.concatenated, layout.mapping)
    process, parameterization = schedulers.process(scheduler), schedulers.parameterization(scheduler)
    denoiser = Denoiser(layout.network, conditioner, process, parameterization)
    return StableDiffusion(model, layout, encoders, denoiser, scheduler, family)


def normalizer_entries() -> list[Entry]:
    """The mapping of Stable unCLIP's `image_normalizer`."""
    return [
        Entry(f"conditioner/{parameters_of(EMBEDDING)}/{name}", (name,), SAME) for name in ("mean", "std")
    ]


def unet_entries(layout: UnetLayout, names: Any) -> list[Entry]:
    """The mapping of a U-Net's tensors in the naming of a file."""
    naming = stable_diffusion_unet.naming_of(names)
    return list(stable_diffusion_unet.entries(layout, naming))


def _family(model: PublishedModel, layout: UnetLayout) -> str:
    if layout.noise_classes is not None:
        return "upscaler"
    if layout.mapped == "text_time":
        return "xl"
    open_clip = layout.context_width == 1024 or any(part.name == OPEN_CLIP for part in model.texts)
    return "sd2" if open_clip else "sd1"


def _prediction(model: PublishedModel, scheduler: Mapping[str, Any], layout: UnetLayout) -> str:
    """What the U-Net predicts."""
    if "prediction_type" in scheduler or model.scheduler:
        return scheduler.get("prediction_type", "epsilon")
    stated = str(model.metadata.get("modelspec.prediction_type", ""))
    if stated:
        return "v_prediction" if stated.startswith("v") else "epsilon"
    unknown = _family(model, layout) in ("sd2", "upscaler")
    fix = (
        "give --prediction v for 768 pixels and the upscaler, --prediction epsilon for the base of 512 pixels"
    )
    expect(not unknown, "--prediction", None, "what the U-Net predicts, since this file does not say it", fix)
    return "epsilon"


def _encoders(model: PublishedModel, layout: UnetLayout, ends: Sequence[int]) -> tuple[ClipTextEncoder, ...]:
    """The text encoders, with the states that the U-Net reads of them."""
    sdxl, last = layout.mapped == "text_time", len(model.texts) - 1
    found = []
    for i, part in enumerate(model.texts):
        penultimate = part.name == OPEN_CLIP and WITHOUT_LAST not in model.metadata and not _is_cut(part)
        encoder = text_encoders.clip_encoder(part.tensors, part.config or None, penultimate=penultimate)
        if not part.config:
            encoder = encoder.clone(end=ends[i])
        if sdxl:
            encoder = encoder.clone(layer=-2, final_norm=False, pooled=i == last)
        found.append(encoder)
    return tuple(found)


def _is_cut(part: Part) -> bool:
    """Whether a text encoder is OpenCLIP's ViT-H/14 without the last of its 24 blocks."""
    return not any(".resblocks.23." in f".{name}" for name in part.tensors) and any(
        ".resblocks.22." in f".{name}" for name in part.tensors
    )


def _conditions(
    model: PublishedModel,
    layout: UnetLayout,
    encoders: Sequence[ClipTextEncoder],
    tokenizers: Sequence[ClipTokenizer],
) -> tuple[dict[str, Any], Extra]:
    expect(
        len(encoders) > 0,
        "--from",
        str(model.path),
        "a model with a text encoder",
        "give the whole model",
        "none",
    )
    joined, own = len(encoders) > 1, tuple[Any, ...](tokenizers)
    tokenizer: Any = JoinedTokenizer(own) if joined else own[0]
    encoder = JoinedEncoder(tuple(encoders)) if joined else encoders[0]
    width = sum(each.width for each in encoders)
    expect(width == layout.context_width, "--from", str(model.path),
           f"text encoders of {layout.context_width} channels, as the U-Net reads", "give the files of one model",
           str(width))  # fmt: skip
    zeros = model.index.get("force_zeros_for_empty_prompt", joined) and layout.mapped == "text_time"
    null: Null = "zero" if zeros else "empty"
    factor = _network(_required(model.autoencoder, "an autoencoder")).factor
    low_res = schedulers.process(model.low_res_scheduler or LOW_RES) if layout.noise_classes else None
    noising = schedulers.process(model.noising_scheduler) if layout.mapped == "projection" else None
    extra = extra_conditions(layout, encoders[-1].projection or encoders[-1].width, factor, low_res, noising)
    return {"text": Text(tokenizer, encoder, drop_rate=0.1, null=null), **extra.conditions}, extra


def _network(part: Part) -> Any:
    """The network of an autoencoder."""
    return autoencoder_configs.network(part.config) if part.config else autoencoders.network_of(part.tensors)


def _required(part: Part | None, what: str) -> Part:
    if part is None:
        raise UserError(f"--from: expected a model with {what}, got none. Fix: give the whole model")
    return part
