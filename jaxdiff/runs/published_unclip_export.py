"""Staged runs of unCLIP as published folders of diffusers, written tensor by tensor."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from etils import epath
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jaxdiff import config as configs
from jaxdiff.codecs import standardized
from jaxdiff.data.tokenizer_files import copy_tokenizer
from jaxdiff.errors import UserError
from jaxdiff.experiment import Experiment
from jaxdiff.interop import scheduler_settings, schedulers, stable_diffusion_export, unclip_export
from jaxdiff.interop.prior_transformer import STATISTICS
from jaxdiff.interop.safetensors_files import write_safetensors
from jaxdiff.interop.stable_diffusion_conditions import EMBEDDING
from jaxdiff.interop.unclip_export import ExportedStage, Network
from jaxdiff.runs.published import SCHEDULER, model_of
from jaxdiff.runs.published_export import Export
from jaxdiff.runs.restore import restore_params
from jaxdiff.runs.stages import StagedRun, read_staged
from jaxdiff.runs.weights import FileWeights
from jaxdiff.runs.workdir import read_config

CLASSES = {
    "prior": "PriorTransformer", "text_proj": "UnCLIPTextProjModel", "decoder": "UNet2DConditionModel",
    "super_res_first": "UNet2DModel", "super_res_last": "UNet2DModel", "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL", "image_normalizer": "StableUnCLIPImageNormalizer", "image_encoder":
    "CLIPVisionModelWithProjection", "text_encoder": "CLIPTextModelWithProjection", "prior_text_encoder":
    "CLIPTextModelWithProjection",
}  # fmt: skip
"""The class of each network."""

LIBRARIES = {
    "text_proj": "diffusers.pipelines.deprecated.unclip.text_proj",
    "image_normalizer": "stable_diffusion",
}
"""Where a class is, unless it is transformers' or diffusers' own. Published folders say "unclip" for the first, which
diffusers no longer opens; this is the module's present name."""


class Contents:
    """What a folder will hold.

    Attributes:
      networks: by the names of their folders.
      tokenizers: folders whose tokenizers are copied, by the names of the copies.
      settings: further files by their names, such as ``scheduler/scheduler_config.json``.
    """

    def __init__(self) -> None:
        self.networks: dict[str, Network] = {}
        self.tokenizers: dict[str, pathlib.Path] = {}
        self.settings: dict[str, Mapping[str, Any]] = {}


def folder(workdir: str) -> Export:
    """A staged run as the folder of a diffusers pipeline.

    Raises:
      UserError: diffusers has no pipeline with these stages.
    """
    staged, contents = read_staged(workdir), Contents()
    names = [stage.name for stage in staged.stages]
    if names[-2:] == ["decoder", "super_res"] and set(names[:-2]) <= {"prior"}:
        _add_karlo(staged, contents)
    elif names[-1] == "image" and set(names[:-1]) <= {"prior"}:
        _add_stable(staged, contents)
    else:
        raise UserError(
            f"--to: expected the stages of Karlo or of Stable unCLIP, got {', '.join(names)}. "
            "Fix: keep the workdir as it is"
        )
    _add_photographs(staged, contents)
    stable = names[-1] == "image"
    kinds = (
        "UnCLIPPipeline",
        "UnCLIPImageVariationPipeline",
        "StableUnCLIPPipeline",
        "StableUnCLIPImg2ImgPipeline",
    )
    return _export(contents, kinds[2 * stable + ("prior" not in names)])


def _add_karlo(staged: StagedRun, contents: Contents) -> None:
    runs = {stage.name: stage.workdir for stage in staged.stages}
    decoder = _stage(runs["decoder"])
    if "prior" in runs:
        prior = _stage(runs["prior"])
        _check_same(unclip_export.text_encoder(prior), unclip_export.text_encoder(decoder))
        contents.networks["prior"] = unclip_export.prior(prior)
        contents.settings["prior_scheduler/scheduler_config.json"] = _scheduler(runs["prior"])
    contents.networks["text_encoder"] = unclip_export.text_encoder(decoder)
    contents.networks["decoder"], contents.networks["text_proj"] = unclip_export.decoder(decoder)
    contents.tokenizers["tokenizer"] = pathlib.Path(decoder.tokenizer.folder)
    contents.settings["decoder_scheduler/scheduler_config.json"] = _scheduler(runs["decoder"])
    last = staged.stages[-1]
    for name, workdir in (("super_res_first", last.workdir), ("super_res_last", last.last or last.workdir)):
        contents.networks[name] = unclip_export.upscaler(_stage(workdir))
    contents.settings["super_res_scheduler/scheduler_config.json"] = _scheduler(last.workdir)


def _add_stable(staged: StagedRun, contents: Contents) -> None:
    runs = {stage.name: stage.workdir for stage in staged.stages}
    if "prior" in runs:
        prior = _stage(runs["prior"])
        contents.networks |= {
            "prior": unclip_export.prior(prior),
            "prior_text_encoder": unclip_export.text_encoder(prior),
        }
        contents.tokenizers["prior_tokenizer"] = pathlib.Path(prior.tokenizer.folder)
        contents.settings["prior_scheduler/scheduler_config.json"] = _scheduler(runs["prior"])
    experiment: Experiment = configs.build(read_config(runs["image"]))
    model = model_of(experiment, runs["image"])
    height, width, *_ = experiment.sampled.image_shape
    for name, config, tensors in stable_diffusion_export.folder(model, (height, width)):
        contents.networks[name] = Network(config, tensors)
    contents.networks["image_normalizer"] = unclip_export.normalizer(model.arrays)
    (tokenizer,) = model.tokenizers
    contents.tokenizers["tokenizer"] = pathlib.Path(tokenizer.folder)
    contents.settings["scheduler/scheduler_config.json"] = _scheduler(runs["image"])
    image: Any = model.denoiser.conditioner.conditions[EMBEDDING]
    noising = scheduler_settings.of(image.process, schedulers.parameterization({}))
    noising |= {"_class_name": "DDPMScheduler"}
    contents.settings["image_noising_scheduler/scheduler_config.json"] = noising


def _add_photographs(staged: StagedRun, contents: Contents) -> None:
    for each in staged.encoders.values():
        weights: Any = each.weights
        arrays = (
            weights.arrays() if isinstance(weights, FileWeights) else flatten_dict(weights.read(), sep="/")
        )
        contents.networks["image_encoder"] = unclip_export.image_encoder(each.encoder, arrays)
        contents.settings["feature_extractor/preprocessor_config.json"] = unclip_export.preprocessing(
            each.encoder
        )


def _stage(workdir: str) -> ExportedStage:
    """A stage with its parameters, in the precision of their files."""
    experiment: Experiment = configs.build(read_config(workdir))
    task: Any = experiment.task
    frozen = {name: nn.meta.unbox(origin.read()) for name, origin in task.frozen.items()}
    params = task.full_params(restore_params(experiment, workdir, experiment.mesh.make()), frozen)
    arrays: Any = flatten_dict(params, sep="/")
    statistics = frozen.get(standardized.NAME, {})
    arrays |= {f"{STATISTICS}/{name}": array for name, array in statistics.items()}
    return ExportedStage(task.denoiser, tuple(task.image_shape), arrays)


def _scheduler(workdir: str) -> Mapping[str, Any]:
    """The settings of a stage's published scheduler."""
    file = epath.Path(workdir).expanduser() / SCHEDULER
    if not file.exists():
        raise UserError(
            f"--workdir={workdir}: expected a converted run with {SCHEDULER}, got none. Fix: restore that file"
        )
    return json.loads(file.read_text())


def _check_same(first: Network, second: Network) -> None:
    """Raise `UserError` unless two text encoders are one: a published folder has a single one for both stages."""
    for name, pending in second.tensors.items():
        if name not in first.tensors or pending.read().tobytes() != first.tensors[name].read().tobytes():
            raise UserError(
                f"--to: expected one text encoder of prior and decoder, got two that differ in {name}. "
                "Fix: keep the workdir as it is"
            )


def _export(contents: Contents, pipeline: str) -> Export:
    """The networks, tokenizers and settings, and `model_index.json`."""
    arrays = [each for network in contents.networks.values() for each in network.tensors.values()]
    size = sum(math.prod(each.shape) * each.dtype.itemsize for each in arrays)

    def fill(draft: pathlib.Path) -> None:
        for name, network in contents.networks.items():
            (draft / name).mkdir()
            stem = "model" if name.endswith("encoder") else "diffusion_pytorch_model"
            _write_json(draft / name / "config.json", network.config)
            write_safetensors(draft / name / f"{stem}.safetensors", network.tensors, {"format": "pt"})
        for name, source in contents.tokenizers.items():
            copy_tokenizer(source, draft / name)
        for name, content in contents.settings.items():
            (draft / name).parent.mkdir(exist_ok=True)
            _write_json(draft / name, content)
        _write_json(draft / "model_index.json", _index(contents, pipeline))

    return Export(len(arrays), size, fill)


def _index(contents: Contents, pipeline: str) -> dict[str, Any]:
    """The `model_index.json`."""
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": stable_diffusion_export.DIFFUSERS}
    for name, network in contents.networks.items():
        own = "CLIPTextModel" if "CLIPTextModel" in network.config.get("architectures", ()) else CLASSES[name]
        library = "transformers" if name.endswith("encoder") else LIBRARIES.get(name, "diffusers")
        index[name] = [library, own]
    index |= {name: ["transformers", "CLIPTokenizer"] for name in contents.tokenizers}
    for file, content in contents.settings.items():
        name = file.partition("/")[0]
        scheduler = "_class_name" in content
        index[name] = (
            ["diffusers", content["_class_name"]] if scheduler else ["transformers", "CLIPImageProcessor"]
        )
    return index


def _write_json(file: pathlib.Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
