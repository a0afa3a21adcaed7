"""Runs as published files of Stable Diffusion, written tensor by tensor."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from jaxdiff import config as configs
from jaxdiff.data.published_tokenizers import ClipTokenizer
from jaxdiff.data.tokenizer_files import copy_tokenizer
from jaxdiff.experiment import Experiment
from jaxdiff.interop import scheduler_settings, schedulers, stable_diffusion_export
from jaxdiff.interop.pending import Pending
from jaxdiff.interop.safetensors_files import write_safetensors
from jaxdiff.interop.stable_diffusion import WITHOUT_LAST
from jaxdiff.interop.stable_diffusion_export import ABSENT, Exported
from jaxdiff.runs.published import LOW_RES_SCHEDULER, SCHEDULER, model_of
from jaxdiff.runs.workdir import read_config

PREDICTION = "modelspec.prediction_type"
"""What a single file says about its U-Net, under the name of the convention ModelSpec."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Published files of a run, not yet written.

    Attributes:
      count: number of tensors.
      size: their bytes.
      write: writes them, given the path of a file or of an empty folder.
    """

    count: int
    size: int
    write: Callable[[pathlib.Path], object]


def single_file(workdir: str) -> Export:
    """A run as a single file in the original layout."""
    experiment: Experiment = configs.build(read_config(workdir))
    model = model_of(experiment, workdir)
    stable_diffusion_export.model_index(model)  # refuses what is not a whole model
    tensors = stable_diffusion_export.single_file(model)
    prediction = _scheduler(experiment, workdir)["prediction_type"]
    about = {
        "format": "pt",
        WITHOUT_LAST: "without unread blocks",
        PREDICTION: "v" if prediction == "v_prediction" else prediction,
    }
    return Export(len(tensors), _bytes(tensors), lambda draft: write_safetensors(draft, tensors, about))


def folder(workdir: str) -> Export:
    """A run as the folder of a diffusers pipeline."""
    experiment: Experiment = configs.build(read_config(workdir))
    model = model_of(experiment, workdir)
    height, width, *_ = experiment.sampled.image_shape
    parts = {
        name: (config, tensors)
        for name, config, tensors in stable_diffusion_export.folder(model, (height, width))
    }
    settings = _schedulers(model, experiment, workdir)
    index = stable_diffusion_export.model_index(model) | {
        name: ["diffusers", each["_class_name"]] for name, each in settings.items()
    }

    def fill(draft: pathlib.Path) -> None:
        for name, (config, tensors) in parts.items():
            (draft / name).mkdir()
            stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
            _write_json(draft / name / "config.json", config)
            write_safetensors(draft / name / f"{stem}.safetensors", tensors, {"format": "pt"})
        for name, source in _tokenizers(model).items():
            copy_tokenizer(source, draft / name)
        for name, each in settings.items():
            (draft / name).mkdir()
            _write_json(draft / name / "scheduler_config.json", each)
        _write_json(draft / "model_index.json", index)

    every = [tensors for _, tensors in parts.values()]
    return Export(sum(map(len, every)), sum(map(_bytes, every)), fill)


def _scheduler(experiment: Experiment, workdir: str) -> dict[str, Any]:
    """The settings of the published scheduler, or of one that samples the run's model."""
    denoiser = experiment.sampled.denoiser
    return _stored(workdir, SCHEDULER) or scheduler_settings.of(denoiser.process, denoiser.parameterization)


def _schedulers(model: Exported, experiment: Experiment, workdir: str) -> dict[str, dict[str, Any]]:
    """The settings of each scheduler of the pipeline; an upscaler has one for the noise of the small image."""
    found = {"scheduler": _scheduler(experiment, workdir)}
    low_res = stable_diffusion_export.low_res_process(model)
    if low_res is not None:
        plain = scheduler_settings.of(low_res, schedulers.parameterization({}))
        stored = _stored(workdir, LOW_RES_SCHEDULER) or {**plain, "_class_name": "DDPMScheduler"}
        found["low_res_scheduler"] = {"_class_name": "DDPMScheduler", **stored}
    return found


def _stored(workdir: str, name: str) -> dict[str, Any]:
    """The settings in a file of the run's folder; empty without it."""
    file = epath.Path(workdir).expanduser() / name
    return json.loads(file.read_text()) if file.exists() else {}


def _tokenizers(model: Exported) -> Mapping[str, pathlib.Path]:
    """The folders of the tokenizers by the names of their copies."""
    parts = stable_diffusion_export.model_index(model).items()
    names = [name for name, part in parts if name.startswith("tokenizer") and part != ABSENT]
    return {
        name: pathlib.Path(each.folder)
        for name, each in zip(names, model.tokenizers, strict=True)
        if isinstance(each, ClipTokenizer)
    }


def _write_json(file: pathlib.Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def _bytes(tensors: Mapping[str, Pending]) -> int:
    return sum(math.prod(each.shape) * each.dtype.itemsize for each in tensors.values())
