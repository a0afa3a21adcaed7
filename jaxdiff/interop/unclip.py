"""Published unCLIP models, Karlo and Stable unCLIP: their stages as our denoisers, with parameters not yet read.

>>> model = find("karlo-v1-alpha")
>>> stage = prior_stage(model, tokenizer)
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from jaxdiff.conditioning.conditioner import Conditioner, parameters_of
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.text import Text
from jaxdiff.conditioning.vector_embedding import EmbeddedVector
from jaxdiff.data.text import Tokenizer
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError, expect
from jaxdiff.interop import (
    clip_vision,
    diffusers,
    prior_transformer,
    published,
    schedulers,
    text_encoders,
    unclip_decoder,
)
from jaxdiff.interop.config_fields import COUNT, check
from jaxdiff.interop.files import Unreadable, reading
from jaxdiff.interop.mapping import Entry, to_pending
from jaxdiff.interop.pending import Pending
from jaxdiff.interop.published import Part
from jaxdiff.models.clip_text import ClipTextEncoder
from jaxdiff.models.clip_vision import ClipVisionEncoder
from jaxdiff.models.unclip_text import DecoderText, PriorText
from jaxdiff.typing import Params

KARLO = ("text_encoder", "text_proj", "decoder", "super_res_first", "super_res_last")
STABLE = ("unet", "vae", "text_encoder", "image_normalizer")
PIPELINES: dict[str, tuple[str, ...]] = {
    "UnCLIPPipeline": (*KARLO, "prior"),
    "UnCLIPImageVariationPipeline": (*KARLO, "image_encoder"),
    "StableUnCLIPPipeline": (*STABLE, "prior", "prior_text_encoder"),
    "StableUnCLIPImg2ImgPipeline": (*STABLE, "image_encoder"),
}
"""The networks of each pipeline of diffusers, by the names of their folders."""

OPTIONAL = ("prior", "prior_text_encoder", "image_encoder")
"""Networks that a folder may have besides those of its pipeline: of a text, of a photograph, or of both."""

SCHEDULERS = {
    "prior": "prior_scheduler", "decoder": "decoder_scheduler", "super_res_first": "super_res_scheduler",
    "super_res_last": "super_res_scheduler",
}  # fmt: skip
"""The folder of the scheduler of each stage."""

UNCLIP_SCHEDULER = {"_class_name": "UnCLIPScheduler", "beta_schedule": "squaredcos_cap_v2"}
"""The only schedule of that class; its files need not name it, and other classes have another default."""

CLIP = f"conditioner/{parameters_of('text')}/clip"
"""The path of CLIP's text encoder in a stage's parameters."""


NOTHING: Params = FrozenDict()


@dataclasses.dataclass(frozen=True)
class PublishedUnclip:
    """The parts of a published model, not yet read.

    Attributes:
      path: the folder.
      pipeline: the class of diffusers, a key of `PIPELINES`.
      parts: the networks, by the names of their folders.
    """

    path: pathlib.Path
    pipeline: str
    parts: Mapping[str, Part]

    @property
    def is_stable(self) -> bool:
        """Whether images are made by a U-Net of Stable Diffusion."""
        return self.pipeline.startswith("Stable")

    def scheduler(self, stage: str) -> dict[str, Any]:
        """The settings of a stage's scheduler.

        Raises:
          UserError: there are none.
        """
        file = self.path / SCHEDULERS[stage] / "scheduler_config.json"
        found = published.settings(file)
        fix = "download it completely"
        expect(
            bool(found),
            "path",
            str(self.path),
            f"a pipeline with {SCHEDULERS[stage]}/{file.name}",
            fix,
            "none",
        )
        own = found.get("_class_name") == UNCLIP_SCHEDULER["_class_name"]
        return {**(UNCLIP_SCHEDULER if own else {}), **found}


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of a published model.

    Attributes:
      denoiser: the model.
      image_shape: shape of its samples.
      scheduler: settings of its published sampler.
      own: its parameters by their paths, without CLIP's text encoder. Those of an embedding's statistics begin with
        `prior_transformer.STATISTICS`.
      clip: the parameters of CLIP's text encoder by their paths in it; empty without one.
    """

    denoiser: Denoiser
    image_shape: tuple[int, ...]
    scheduler: Mapping[str, Any]
    own: Mapping[str, Pending]
    clip: Mapping[str, Pending]


def pipeline_of(path: pathlib.Path) -> str | None:
    """The class of diffusers of the unCLIP model in a folder; None if there is another model, or none.

    Raises:
      UserError: a file is damaged.
    """
    if not path.is_dir():
        return None
    with reading(path):
        stated = published.settings(path / "model_index.json").get("_class_name")
    if stated is not None:
        return stated if stated in PIPELINES else None
    there = {entry.name for entry in path.iterdir()}
    return next((name for name, parts in PIPELINES.items() if there.issuperset(parts)), None)


def find(path: pathlib.Path) -> PublishedUnclip:
    """Find the parts of a published model.

    Raises:
      UserError: the folder has no unCLIP model, a network is missing, or a file is damaged.
    """
    pipeline = pipeline_of(path)
    with reading(path):
        if pipeline is None:
            raise Unreadable(
                f"expected one of {', '.join(PIPELINES)}, got another model", "give such a folder"
            )
        names = [*PIPELINES[pipeline], *(name for name in OPTIONAL if (path / name).is_dir())]
        return PublishedUnclip(path, pipeline, {name: published.part_of(path, name) for name in names})


def prior_stage(model: PublishedUnclip, tokenizer: Tokenizer) -> Stage:
    """The prior: from noise and a text to CLIP's embedding of an image.

    Raises:
      UserError: a network has an option that ours lacks, or tensors that do not fit.
    """
    part, texts = (
        model.parts["prior"],
        model.parts["prior_text_encoder" if model.is_stable else "text_encoder"],
    )
    layout = prior_transformer.prior_layout(part.config)
    clip = _clip(texts, layout.text_width)
    expect(tokenizer.length == layout.length, "num_embeddings", layout.length,
           f"{tokenizer.length}, the ids of a text", "use the tokenizer of this model")  # fmt: skip
    text = Text(tokenizer, PriorText(clip, layout.network.width), null="empty")
    scheduler = model.scheduler("prior")
    denoiser = _denoiser(layout.network, Conditioner(layout.noise, {"text": text}), scheduler)
    shape = (layout.dim,)
    statistics = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name in ("mean", "std")}
    own = _pending(
        denoiser, shape, prior_transformer.entries(layout), [part], {prior_transformer.STATISTICS: statistics}
    )
    return Stage(denoiser, shape, scheduler, own, text_encoders.encoder_pending(clip, texts.tensors))


def decoder_stage(model: PublishedUnclip, tokenizer: Tokenizer) -> Stage:
    """The decoder: from noise, an image's embedding and a text to a small image.

    Raises:
      UserError: a network has an option that ours lacks, or tensors that do not fit.
    """
    part, project, texts = (model.parts[name] for name in ("decoder", "text_proj", "text_encoder"))
    layout = unclip_decoder.decoder_layout(part.config, project.config)
    clip, width = _clip(texts, layout.dim), layout.noise.width
    conditions = {
        "image": EmbeddedVector(layout.dim, width, layout.tokens, layout.context_width),
        "text": Text(tokenizer, DecoderText(clip, layout.context_width, width), null="empty"),
    }
    scheduler, channels = model.scheduler("decoder"), layout.in_channels
    learned = scheduler.get("variance_type") == "learned_range"
    outputs = channels * (2 if learned else 1)
    expected = f"{outputs} with variance_type={scheduler.get('variance_type')!r}"
    found, fix = layout.network.out_channels, "use the files of one model"
    expect(found == outputs, "out_channels", found, expected, fix)
    denoiser = _denoiser(layout.network, Conditioner(layout.noise, conditions), scheduler, learned)
    shape = (*_size(part), channels)
    entries = [*diffusers.entries(layout.network), *unclip_decoder.projection_entries(layout)]
    own = _pending(denoiser, shape, entries, [part, project])
    return Stage(denoiser, shape, scheduler, own, text_encoders.encoder_pending(clip, texts.tensors))


def upscaler_stage(model: PublishedUnclip, name: str, small: Sequence[int]) -> Stage:
    """A super-resolution network: from noise and a small image to a large one.

    Args:
      model: the published model.
      name: the network's, ``super_res_first`` or ``super_res_last``.
      small: shape of the small image.

    Raises:
      UserError: the network has an option that ours lacks, or tensors that do not fit.
    """
    part, fix = model.parts[name], "use the files of one model"
    given = diffusers.known_fields(part.config)
    channels, size = given["out_channels"], _size(part)
    fits = given["in_channels"] == channels + small[-1] and size[0] % small[0] == 0
    expected = f"{channels} and the {small[-1]} of a small image, whose size {small[0]} divides {size[0]}"
    expect(fits, "in_channels", given["in_channels"], expected, fix)
    low_res = ImageCondition(small[-1], factor=size[0] / small[0], method="bicubic")
    conditioner = Conditioner(diffusers.noise_level(given), {"low_res": low_res})
    scheduler, shape = model.scheduler(name), (*size, channels)
    denoiser = _denoiser(diffusers.network(given), conditioner, scheduler)
    own = _pending(denoiser, shape, diffusers.entries(diffusers.network_of(denoiser)), [part])
    return Stage(denoiser, shape, scheduler, own, {})


def image_encoder(part: Part) -> tuple[ClipVisionEncoder, dict[str, Pending]]:
    """CLIP's image encoder, and its parameters by their paths.

    Raises:
      UserError: lists tensors that do not fit.
    """
    encoder = clip_vision.vision_encoder(part.tensors, part.config)
    return encoder, clip_vision.vision_pending(encoder, part.tensors)


def _clip(part: Part, width: int) -> ClipTextEncoder:
    """CLIP's text encoder, which must have this many channels, and embeddings of this length."""
    encoder = text_encoders.clip_encoder(part.tensors, part.config).clone(pooled=True)
    sizes = {"hidden_size": encoder.width, "projection_dim": encoder.projection or encoder.width}
    for field, size in sizes.items():
        expect(
            size == width,
            field,
            size,
            f"{width}, as the networks of this model read",
            "use the files of one model",
        )
    return encoder


def _size(part: Part) -> tuple[int, int]:
    """Height and width of a network's images."""
    check(part.config, {"sample_size": COUNT}, f"config.json of {part.name}")
    size = part.config.get("sample_size")
    if size is None:
        raise UserError(
            f"sample_size=None: expected the size of the images in the config.json of {part.name}, got none. "
            "Fix: download that file again"
        )
    return size, size


def _denoiser(
    network: nn.Module, conditioner: Conditioner, scheduler: Mapping[str, Any], learned: bool = False
) -> Denoiser:
    kind = schedulers.parameterization(scheduler, learned_variance=learned)
    return Denoiser(network, conditioner, schedulers.process(scheduler), kind)


def _pending(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    entries: Iterable[Entry],
    parts: Sequence[Part],
    more: Params = NOTHING,
) -> dict[str, Pending]:
    """The parameters of a denoiser without CLIP's text encoder, and `more`, from the tensors of `parts`."""
    tensors = {name: part.tensors[name] for part in parts for name in part.tensors}
    return to_pending(entries, tensors, {**own_shapes(denoiser, shape), **more})


def own_shapes(denoiser: Denoiser, shape: tuple[int, ...]) -> Params:
    """The shapes of a denoiser's parameters without CLIP's text encoder.

    Args:
      denoiser: of a stage.
      shape: of one example of its data.
    """
    conditioner: Any = denoiser.conditioner
    x, t = jnp.zeros((1, *shape)), jnp.full((1,), 0.5)
    arguments = (x, t, conditioner.example(1, shape), conditioner.none_dropped(1))
    make = functools.partial(denoiser.init, train=False)
    found = nn.meta.unbox(jax.eval_shape(make, jax.random.key(0), *arguments))["params"]
    text = found["conditioner"].get(parameters_of("text"), {})
    text.pop("clip", None)
    return found
