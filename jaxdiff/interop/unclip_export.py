"""Stages of unCLIP as the networks of a published folder: the way back from `jaxdiff.interop.unclip`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.text import Text
from jaxdiff.conditioning.vector_embedding import EmbeddedVector
from jaxdiff.data.published_tokenizers import ClipTokenizer
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError
from jaxdiff.interop import (
    clip_vision,
    diffusers,
    prior_transformer,
    text_encoder_configs,
    text_encoders,
    unclip_decoder,
)
from jaxdiff.interop.mapping import to_pending_tensors
from jaxdiff.interop.pending import Pending
from jaxdiff.interop.prior_transformer import PriorLayout
from jaxdiff.interop.stable_diffusion import normalizer_entries
from jaxdiff.interop.unclip import CLIP
from jaxdiff.interop.unclip_decoder import IMAGE, DecoderLayout
from jaxdiff.models.clip_vision import MEAN, STD, ClipVisionEncoder
from jaxdiff.models.prior_transformer import PriorTransformer
from jaxdiff.models.unclip_text import DecoderText, PriorText

TEXT = CLIP.removesuffix("/clip")
PROJECTION = (f"{IMAGE}/", f"{TEXT}/")
"""Beginnings of the paths of `UnCLIPTextProjModel`, whose other parameters are CLIP's."""


class Network(NamedTuple):
    """A network of a published folder: its `config.json` and its tensors, not yet read."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Pending]


@dataclasses.dataclass(frozen=True)
class ExportedStage:
    """A stage of a run.

    Attributes:
      denoiser: the model.
      image_shape: shape of its samples.
      arrays: its parameters by their paths, and those of an embedding's statistics.
    """

    denoiser: Denoiser
    image_shape: tuple[int, ...]
    arrays: Mapping[str, Any]

    @property
    def text(self) -> Text:
        """The condition of a text, whose encoder is CLIP's.

        Raises:
          UserError: there is none.
        """
        text = self.denoiser.conditioner.conditions.get("text")
        if not (isinstance(text, Text) and isinstance(text.encoder, PriorText | DecoderText)):
            raise _unsupported("conditions.text", text)
        return text

    @property
    def tokenizer(self) -> ClipTokenizer:
        """The tokenizer of the texts."""
        tokenizer = self.text.tokenizer
        if not isinstance(tokenizer, ClipTokenizer):
            raise _unsupported("conditions.text.tokenizer", tokenizer)
        return tokenizer


def prior(stage: ExportedStage) -> Network:
    """The prior.

    Raises:
      UserError: the stage is none that diffusers has.
    """
    network, encoder = stage.denoiser.network, stage.text.encoder
    if not (isinstance(network, PriorTransformer) and isinstance(encoder, PriorText)):
        raise _unsupported("network", network)
    noise: Any = stage.denoiser.conditioner.noise
    layout = PriorLayout(network, noise, stage.image_shape[0], encoder.clip.width, stage.tokenizer.length)
    config = prior_transformer.prior_config(layout)
    plain = dataclasses.replace(layout, network=network.clone(dtype="float32", remat=False))
    if prior_transformer.prior_layout(config) != plain:
        raise _unsupported("network", network)
    return Network(
        config, to_pending_tensors(prior_transformer.entries(layout), _without(stage.arrays, f"{CLIP}/"))
    )


def text_encoder(stage: ExportedStage) -> Network:
    """CLIP's text encoder."""
    encoder: Any = stage.text.encoder
    arrays = {
        path.removeprefix(f"{CLIP}/"): array
        for path, array in stage.arrays.items()
        if path.startswith(f"{CLIP}/")
    }
    config = text_encoder_configs.clip_config(encoder.clip, stage.tokenizer.padding)
    return Network(config, text_encoders.encoder_pending_tensors(encoder.clip, arrays, "clip"))


def decoder(stage: ExportedStage) -> tuple[Network, Network]:
    """The decoder's U-Net, and `UnCLIPTextProjModel`.

    Raises:
      UserError: the stage is none that diffusers has.
    """
    image, network = stage.denoiser.conditioner.conditions.get("image"), diffusers.network_of(stage.denoiser)
    if not isinstance(image, EmbeddedVector) or image.width is None:
        raise _unsupported("conditions.image", image)
    noise: Any = stage.denoiser.conditioner.noise
    channels = stage.arrays["network/stem/kernel"].shape[2]
    layout = DecoderLayout(network, noise, channels, image.size, image.width, image.tokens)
    own = {path: array for path, array in stage.arrays.items() if path.startswith(PROJECTION)}
    projection = to_pending_tensors(unclip_decoder.projection_entries(layout), _without(own, f"{CLIP}/"))
    unet = to_pending_tensors(diffusers.entries(network), _without(stage.arrays, *PROJECTION))
    config = unclip_decoder.decoder_config(layout, stage.image_shape[0])
    return Network(config, unet), Network(unclip_decoder.projection_config(layout), projection)


def upscaler(stage: ExportedStage) -> Network:
    """A super-resolution network.

    Raises:
      UserError: the stage is none that diffusers has.
    """
    network, conditioner = diffusers.network_of(stage.denoiser), stage.denoiser.conditioner
    if not isinstance(conditioner, Conditioner) or not isinstance(
        conditioner.conditions.get("low_res"), ImageCondition
    ):
        raise _unsupported("conditions.low_res", conditioner)
    channels = stage.arrays["network/stem/kernel"].shape[2]
    config = diffusers.network_config(network, conditioner.noise, channels, stage.image_shape[0])
    return Network(config, to_pending_tensors(diffusers.entries(network), stage.arrays))


def image_encoder(encoder: ClipVisionEncoder, arrays: Mapping[str, Any]) -> Network:
    """CLIP's image encoder."""
    return Network(clip_vision.vision_config(encoder), clip_vision.vision_pending_tensors(encoder, arrays))


def preprocessing(encoder: ClipVisionEncoder) -> dict[str, Any]:
    """The `preprocessor_config.json` of CLIP's images."""
    side = encoder.image_size
    return {
        "image_processor_type": "CLIPImageProcessor", "crop_size": {"height": side, "width": side},
        "size": {"shortest_edge": side}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
        "do_rescale": True, "do_resize": True, "image_mean": list(MEAN), "image_std": list(STD), "resample": 3,
    }  # fmt: skip


def normalizer(arrays: Mapping[str, Any]) -> Network:
    """The mean and the standard deviation of Stable unCLIP's image embeddings."""
    entries = normalizer_entries()
    own = {path: array for path, array in arrays.items() if path in {entry.path for entry in entries}}
    size = next(iter(own.values())).shape[-1]
    config = {"_class_name": "StableUnCLIPImageNormalizer", "embedding_dim": size}
    return Network(config, to_pending_tensors(entries, own))


def _without(arrays: Mapping[str, Any], *prefixes: str) -> dict[str, Any]:
    return {path: array for path, array in arrays.items() if not path.startswith(prefixes)}


def _unsupported(field: str, value: object) -> UserError:
    got = type(value).__name__
    return UserError(
        f"{field}: expected a part of a published unCLIP, got {got}. Fix: keep the workdir as it is"
    )
