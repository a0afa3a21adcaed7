"""Published text-to-image models: the parts of a diffusers pipeline's folder, or of a single file of latent diffusion.

>>> model = find("stable-diffusion-v1-5")
>>> sorted(model.unet.tensors)[0], model.scheduler["beta_schedule"]
('conv_in.bias', 'scaled_linear')
"""

import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxdiff.config.blocks import TARGET
from jaxdiff.errors import UserError
from jaxdiff.interop import folders
from jaxdiff.interop.files import Unreadable, read_json, reading
from jaxdiff.interop.tensors import Tensors, read_tensors

_log = logging.getLogger(__name__)

PIPELINES = ("StableDiffusion", "LatentConsistencyModel", "StableUnCLIP")
"""Beginnings of the names of pipelines whose parts are those of Stable Diffusion."""

ZERO_SNR = "ztsnr"
"""In a single file's metadata: the last step of the model is pure noise."""

UNET_CLASS = "UNet2DConditionModel"
"""The class of the U-Net in diffusers."""

UNET = "model.diffusion_model."
AUTOENCODER = "first_stage_model."
TEXTS = (
    "cond_stage_model.transformer.",
    "cond_stage_model.model.",
    "conditioner.embedders.0.transformer.",
    "conditioner.embedders.0.model.",
    "conditioner.embedders.1.model.",
)
"""Prefixes of the parts in a single file: the U-Net, the autoencoder, and text encoders in their order."""

BUFFERS = ("model_ema.", "denoiser.", "loss.", "cond_stage_model.logit_scale")
"""First parts of further names in a single file: counters and tables of training."""

TABLES = re.compile(
    "(log_|sqrt_)?(recip_|recipm1_|one_minus_)?(betas|alphas_cumprod(_prev)?)|posterior_[a-z0-9_]+|lvlb_weights|logvar"
    "|scale_factor"
)
"""Names without a dot that are tables of the noise schedule."""

MARKS = {"v_pred": ("modelspec.prediction_type", "v"), "ztsnr": (ZERO_SNR, "true")}
"""Empty tensors by which trainers mark a model, and what they say in the words of metadata."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A network of a published model.

    Attributes:
      tensors: by their names in the part, without the part's prefix in a single file.
      config: its `config.json`; empty in a single file.
      name: the folder's name or the prefix, for errors and for the way back.
    """

    tensors: Tensors
    config: Mapping[str, Any]
    name: str


@dataclasses.dataclass(frozen=True)
class PublishedModel:
    """The parts of a published model, not yet read.

    Attributes:
      path: the file or folder.
      unet: the U-Net.
      autoencoder: None in a file of a U-Net alone.
      texts: the text encoders; none in a file of a U-Net alone.
      tokenizers: the folder of each text encoder's tokenizer; empty for a single file, which has none.
      scheduler: `scheduler_config.json`; empty for a single file.
      low_res_scheduler: that of the small image in an upscaler; empty in other models.
      normalizer: mean and standard deviation of the image embeddings that Stable unCLIP reads; None in other models.
      noising_scheduler: that of the noise on these embeddings; empty in other models.
      index: `model_index.json`; empty for a single file.
      metadata: texts that a single file stores about itself.
    """

    path: pathlib.Path
    unet: Part
    autoencoder: Part | None = None
    texts: tuple[Part, ...] = ()
    tokenizers: tuple[pathlib.Path, ...] = ()
    scheduler: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    low_res_scheduler: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    normalizer: Part | None = None
    noising_scheduler: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    index: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def is_published(path: str | os.PathLike[str]) -> bool:
    """Whether there is a text-to-image pipeline, or a single file of one, at a path.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    root = pathlib.Path(path).expanduser()
    with reading(root):
        if root.is_dir():
            config = root / "unet" / "config.json"
            return config.exists() and read_json(config).get("_class_name") == UNET_CLASS
    return any(name.startswith(UNET) for name in read_tensors(root).tensors)


def describe(path: str | os.PathLike[str]) -> tuple[str, str]:
    """What there is at a path that `is_published` denies, in a few words, and how to convert it.

    Raises:
      UserError: a file is damaged.
    """
    root = pathlib.Path(path).expanduser()
    other = "give the config of its network by --config, or --base RUN if it is the U-Net of such a model"
    if not root.is_dir():
        return "a file of other tensors", other
    with reading(root):
        config, index = settings(root / "config.json"), settings(root / "model_index.json")
    if TARGET in config:
        return (
            "a run of jaxdiff",
            "use it as --workdir: sample reads it, and convert with --to writes it for diffusers",
        )
    if config.get("_class_name") == UNET_CLASS:
        fix = f"give the folder of the whole model, {root.parent}, or the file of the U-Net and --base RUN"
        return "the U-Net of one alone", fix
    if "_class_name" in config or "_class_name" in index:
        return f"{config.get('_class_name') or index['_class_name']} of diffusers", other
    names = sorted(entry.name for entry in root.iterdir())
    got = (
        f"a folder with {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        if names
        else "an empty folder"
    )
    return (
        got,
        "give the folder that has model_index.json, unet, vae and text_encoder in it, or a file of weights",
    )


def find(path: str | os.PathLike[str], ema: bool | None = None) -> PublishedModel:
    """Find the parts of a published model.

    Args:
      path: the folder of a pipeline of diffusers, or a single file.
      ema: the weights to read where a file has averaged and trained ones, see `read_tensors`.

    Raises:
      UserError: there is no such model, or a file is damaged.
    """
    root = pathlib.Path(path).expanduser()
    with reading(root):
        return _of_folder(root, ema) if root.is_dir() else _of_file(root, ema)


def _of_folder(root: pathlib.Path, ema: bool | None) -> PublishedModel:
    scheduler, low_res, noising = (
        root / name / "scheduler_config.json"
        for name in ("scheduler", "low_res_scheduler", "image_noising_scheduler")
    )
    index = settings(root / "model_index.json")
    _check_pipeline(root, index)
    texts = tuple(name for name in ("text_encoder", "text_encoder_2") if (root / name).is_dir())
    if not scheduler.exists():
        _log.warning("no %s: the schedule of Stable Diffusion is assumed, and its sampler", scheduler)
    return PublishedModel(
        path=root,
        unet=part_of(root, "unet", ema),
        autoencoder=part_of(root, "vae"),
        texts=tuple(part_of(root, name) for name in texts),
        tokenizers=tuple(root / name.replace("text_encoder", "tokenizer") for name in texts),
        scheduler=settings(scheduler),
        low_res_scheduler=settings(low_res),
        normalizer=part_of(root, "image_normalizer") if (root / "image_normalizer").is_dir() else None,
        noising_scheduler=settings(noising),
        index=index,
    )


def _check_pipeline(root: pathlib.Path, index: Mapping[str, Any]) -> None:
    """Raise `Unreadable` for the pipeline of another model; a folder without an index may be one of training."""
    kind = index.get("_class_name")
    if kind is not None and not str(kind).startswith(PIPELINES):
        raise Unreadable(
            f"expected a pipeline of Stable Diffusion, got {str(kind)[:200]} in {root / 'model_index.json'}",
            "give a model of Stable Diffusion 1, 2 or XL",
        )


def settings(file: pathlib.Path) -> Mapping[str, Any]:
    """The content of a file of JSON; empty without one."""
    return read_json(file) if file.exists() else {}


def part_of(root: pathlib.Path, name: str, ema: bool | None = None) -> Part:
    """The network in the folder `name` of a pipeline.

    Raises:
      UserError, Unreadable: there is none, or a file is damaged.
    """
    folder = root / name
    if not folder.is_dir():
        raise UserError(
            f"path={str(root)!r}: expected a pipeline with the folder {name}, got none. Fix: download it completely, "
            "or for a U-Net alone give the file of its weights, and --base"
        )
    if name == "unet":
        config = read_json(folders.model_folder(root, ema) / "config.json")
        return Part(read_tensors(root, ema).tensors, config, name)
    config = read_json(folder / "config.json")
    return Part(read_tensors(folders.weights_file(folder, None)).tensors, config, name)


def _of_file(root: pathlib.Path, ema: bool | None) -> PublishedModel:
    checkpoint = read_tensors(root, ema)
    parts = {prefix: _with_prefix(checkpoint.tensors, prefix) for prefix in (UNET, AUTOENCODER, *TEXTS)}
    if parts[UNET] is not None:
        _check_known(checkpoint.tensors)
    return PublishedModel(
        path=root,
        unet=parts[UNET] or Part(checkpoint.tensors, {}, ""),
        autoencoder=parts[AUTOENCODER],
        texts=tuple(part for prefix in TEXTS if (part := parts[prefix]) is not None),
        metadata={**checkpoint.metadata, **dict(MARKS[name] for name in MARKS if name in checkpoint.tensors)},
    )


def _check_known(names: Iterable[str]) -> None:
    """Raise `Unreadable` for a single file with tensors of another network, which would be left out."""
    known = (UNET, AUTOENCODER, *TEXTS, *BUFFERS)
    left = [name for name in names if not (name.startswith(known) or name in MARKS or TABLES.fullmatch(name))]
    if left:
        shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        raise Unreadable(
            f"expected the U-Net, autoencoder and text encoders of Stable Diffusion, got other tensors too: {shown}",
            "give a file of one of its versions 1, 2 or XL",
        )


def _with_prefix(tensors: Tensors, prefix: str) -> Part | None:
    """The tensors behind a prefix; None without any."""
    names = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    return Part(tensors.renamed(names), {}, prefix) if names else None
