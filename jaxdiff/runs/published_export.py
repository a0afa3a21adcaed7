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
from jaxdiff.errors import expect
from jaxdiff.experiment import Experiment
from jaxdiff.interop import (
    control_net,
    control_net_export,
    scheduler_settings,
    schedulers,
    stable_diffusion_export,
)
from jaxdiff.interop.safetensors_files import write_safetensors
from jaxdiff.interop.stable_diffusion import WITHOUT_LAST
from jaxdiff.interop.stable_diffusion_export import ABSENT, Exported
from jaxdiff.models.control_net import Controlled
from jaxdiff.runs.published import LOW_RES_SCHEDULER, SCHEDULER, model_of
from jaxdiff.runs.workdir import read_config
from jaxdiff.training.state import abstract_params
from jaxdiff.trees import paths, some_of

NETWORK = "diffusion_pytorch_model"
"""The name of a network's file in diffusers, without its suffix."""

PREDICTION = "modelspec.prediction_type"
"""What a single file says about its U-Net, under the name of the convention ModelSpec."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Published files of a run, not yet written.

    Attributes:
      count: number of tensors.
      size: their bytes.
      write: writes them, given the path of a file or of an empty folder.
      kind: what it is, for the user.
    """

    count: int
    size: int
    write: Callable[[pathlib.Path], object]
    kind: str = "a pipeline of diffusers"


def single_file(workdir: str) -> Export:
    """A run as a single file in the original layout; of a run with a ControlNet, the ControlNet alone."""
    experiment: Experiment = configs.build(read_config(workdir))
    model = model_of(experiment, workdir)
    if isinstance(model.denoiser.network, Controlled):
        return _control_net(model, experiment, "original")
    stable_diffusion_export.model_index(model)  # refuses what is not a whole model
    tensors = stable_diffusion_export.single_file(model)
    prediction = _scheduler(experiment, workdir)["prediction_type"]
    about = {
        "format": "pt",
        WITHOUT_LAST: "without unread blocks",
        PREDICTION: "v" if prediction == "v_prediction" else prediction,
    }
    kind = "a single file"
    return Export(len(tensors), _bytes(tensors), lambda draft: write_safetensors(draft, tensors, about), kind)


def folder(workdir: str) -> Export:
    """A run as the folder of a diffusers pipeline; of a run with a ControlNet, the ControlNet alone."""
    experiment: Experiment = configs.build(read_config(workdir))
    model = model_of(experiment, workdir)
    if isinstance(model.denoiser.network, Controlled):
        return _control_net(model, experiment, "diffusers")
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
            _write_network(draft / name, config, tensors, "model" if name.startswith("text") else NETWORK)
        for name, source in _tokenizers(model).items():
            copy_tokenizer(source, draft / name)
        for name, each in settings.items():
            (draft / name).mkdir()
            _write_json(draft / name / "scheduler_config.json", each)
        _write_json(draft / "model_index.json", index)

    every = [tensors for _, tensors in parts.values()]
    return Export(sum(map(len, every)), sum(map(_bytes, every)), fill)


def _control_net(model: Exported, experiment: Experiment, naming: control_net.Naming) -> Export:
    """The ControlNet of a run that trains nothing else."""
    trained, _ = abstract_params(experiment.task, experiment.mesh.make(), experiment.optimizer.frozen)
    others = [path for path in paths(trained) if not path.startswith("network/controls_")]
    fix = "keep the workdir as it is; a ControlNet alone would not be the trained model"
    frozen, got = experiment.optimizer.frozen, f"one that trains {some_of(others)}"
    expect(not others, "config.optimizer.frozen", frozen, "a run that trains its ControlNet alone", fix, got)
    config, tensors = control_net_export.exported_control_net(model.denoiser, model.params, naming)
    size, count = _bytes(tensors), len(tensors)
    if naming == "original":
        return Export(
            count, size, lambda draft: write_safetensors(draft, tensors), "a ControlNet in a single file"
        )
    return Export(
        count, size, lambda draft: _write_network(draft, config, tensors), "a ControlNet of diffusers"
    )


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


def _write_network(
    folder: pathlib.Path, config: Mapping[str, Any], tensors: Mapping[str, Any], stem: str = NETWORK
) -> None:
    _write_json(folder / "config.json", config)
    write_safetensors(folder / f"{stem}.safetensors", tensors, {"format": "pt"})


def _write_json(file: pathlib.Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def _bytes(tensors: Mapping[str, Any]) -> int:
    return sum(math.prod(each.shape) * each.dtype.itemsize for each in tensors.values())
