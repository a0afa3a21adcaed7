"""Runs as Stable Diffusion's published files, written tensor by tensor."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from etils import epath
from flax import linen as nn

from jaxdiff import config as configs
from jaxdiff.cli.output import Output
from jaxdiff.codecs import latent
from jaxdiff.conditioning.text import Text
from jaxdiff.data.joined_tokenizer import JoinedTokenizer
from jaxdiff.data.published_tokenizers import ClipTokenizer
from jaxdiff.data.tokenizer_files import copy_tokenizer
from jaxdiff.experiment import Experiment
from jaxdiff.interop import scheduler_settings, stable_diffusion_export
from jaxdiff.interop.pending import Pending
from jaxdiff.interop.safetensors_files import write_safetensors
from jaxdiff.interop.stable_diffusion import WITHOUT_LAST
from jaxdiff.interop.stable_diffusion_export import Exported
from jaxdiff.runs.published import SCHEDULER
from jaxdiff.runs.restore import restore_params
from jaxdiff.runs.workdir import read_config

PREDICTION = "modelspec.prediction_type"
"""What a single file says about its U-Net, under the name of the convention ModelSpec."""


def model_of(experiment: Experiment, workdir: str) -> Exported:
    """The model of a run; parameters that come from files stay in the files' precision, and are not yet read."""
    task: Any = experiment.task
    mesh = experiment.mesh.make()
    trained = restore_params(experiment, workdir, mesh)
    frozen = {name: nn.meta.unbox(origin.read()) for name, origin in task.frozen.items()}
    return Exported(task.denoiser, task.codec, task.full_params(trained, frozen), frozen[latent.NAME])


def write_file(workdir: str, target: Output) -> str:
    """Write a run as a single file in the original layout; returns a summary for the user."""
    experiment: Experiment = configs.build(read_config(workdir))
    model = model_of(experiment, workdir)
    tensors = stable_diffusion_export.single_file(model)
    target.check_space(_bytes(tensors))
    prediction = _scheduler(experiment, workdir)["prediction_type"]
    about = {
        "format": "pt",
        WITHOUT_LAST: "without unread blocks",
        PREDICTION: "v" if prediction == "v_prediction" else prediction,
    }
    target.write(lambda draft: write_safetensors(draft, tensors, about))
    return f"wrote {len(tensors)} tensors of {workdir} to {target.path}"


def write_folder(workdir: str, target: Output) -> str:
    """Write a run as the folder of a diffusers pipeline; returns a summary for the user."""
    experiment: Experiment = configs.build(read_config(workdir))
    model = model_of(experiment, workdir)
    size = max(experiment.sampled.image_shape[:2])
    parts = {name: (config, tensors) for name, config, tensors in stable_diffusion_export.folder(model, size)}
    index, scheduler = stable_diffusion_export.model_index(model), _scheduler(experiment, workdir)
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    target.check_space(sum(_bytes(tensors) for _, tensors in parts.values()))

    def fill(draft: pathlib.Path) -> None:
        for name, (config, tensors) in parts.items():
            (draft / name).mkdir()
            stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
            _write_json(draft / name / "config.json", config)
            write_safetensors(draft / name / f"{stem}.safetensors", tensors, {"format": "pt"})
        for name, source in _tokenizers(model).items():
            copy_tokenizer(source, draft / name)
        (draft / "scheduler").mkdir()
        _write_json(draft / "scheduler" / "scheduler_config.json", scheduler)
        _write_json(draft / "model_index.json", index)

    target.write(fill)
    count = sum(len(tensors) for _, tensors in parts.values())
    return f"wrote {count} tensors of {workdir} to {target.path}, a pipeline of diffusers"


def _scheduler(experiment: Experiment, workdir: str) -> dict[str, Any]:
    """The settings of the published scheduler, or of one that samples the run's model."""
    file = epath.Path(workdir).expanduser() / SCHEDULER
    denoiser = experiment.sampled.denoiser
    own = json.loads(file.read_text()) if file.exists() else {}
    return own or scheduler_settings.of(denoiser.process, denoiser.parameterization)


def _tokenizers(model: Exported) -> Mapping[str, pathlib.Path]:
    """The folders of the tokenizers by the names of their copies."""
    text: Any = model.denoiser.conditioner.conditions["text"]
    assert isinstance(text, Text)
    joined = text.tokenizer
    found = joined.tokenizers if isinstance(joined, JoinedTokenizer) else (joined,)
    names = [name for name in stable_diffusion_export.model_index(model) if name.startswith("tokenizer")]
    return {
        name: pathlib.Path(each.folder)
        for name, each in zip(names, found, strict=True)
        if isinstance(each, ClipTokenizer)
    }


def _write_json(file: pathlib.Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def _bytes(tensors: Mapping[str, Pending]) -> int:
    return sum(math.prod(each.shape) * each.dtype.itemsize for each in tensors.values())
