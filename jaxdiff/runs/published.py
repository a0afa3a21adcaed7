"""Published models as runs: the folder of a run whose parameters are files of their own, and no checkpoint."""

import dataclasses
import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from jaxdiff import config as configs
from jaxdiff.codecs import latent
from jaxdiff.config.overrides import override
from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.published_tokenizers import ClipTokenizer
from jaxdiff.data.text import Tokenize
from jaxdiff.data.tokenizer_files import clip_vocabulary, copy_tokenizer
from jaxdiff.distributed.first_process import in_first
from jaxdiff.errors import RunFailure, UserError, expect
from jaxdiff.experiment import Experiment
from jaxdiff.interop import schedulers, stable_diffusion
from jaxdiff.interop.files import release
from jaxdiff.interop.mapping import check_finite, to_pending
from jaxdiff.interop.pending import Pending
from jaxdiff.interop.published import PublishedModel
from jaxdiff.interop.safetensors_files import write_safetensors
from jaxdiff.interop.stable_diffusion import StableDiffusion
from jaxdiff.interop.stable_diffusion_export import Exported
from jaxdiff.interop.stable_diffusion_lora import merged
from jaxdiff.process.time_sampling import UniformSteps
from jaxdiff.runs.continuation import latest_step
from jaxdiff.runs.draft import check_new, draft
from jaxdiff.runs.published_tokenizers import paddings, tokenizers_of
from jaxdiff.runs.restore import restore_params
from jaxdiff.runs.weights import AUTOENCODER, RECORD, TEXT, UNET, FileWeights, write_record
from jaxdiff.runs.workdir import CONFIG_FILE, FROZEN, HERE, read_config
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW

_log = logging.getLogger(__name__)

SCHEDULER = "scheduler_config.json"
"""The settings of the published scheduler, in the run's folder."""

LOW_RES_SCHEDULER = "low_res_scheduler_config.json"
"""The same for the noise of the small image in an upscaler."""

Files = dict[str, dict[str, Pending]]
"""Parameters by the file that holds them, and by their paths in it."""

STEPS = 50
"""Sampling steps of a new run, as in the published pipelines."""


def convert(
    model: PublishedModel,
    workdir: str,
    tokenizer: str | None = None,
    prediction: str | None = None,
    overrides: Sequence[tuple[str, str]] = (),
    loras: Sequence[tuple[str, float]] = (),
) -> str:
    """Make `workdir` a run that samples as the published model does.

    No more than one tensor is in memory at a time. The folder appears when it is complete.

    Args:
      model: the published model.
      workdir: the folder to make.
      tokenizer: a folder, see `tokenizers_of`.
      prediction: see `stable_diffusion.of`.
      overrides: (path, text) pairs that change the run's config.
      loras: LoRA files to merge, each with its scale.

    Returns:
      A summary for the user.

    Raises:
      UserError: a file is damaged, a tensor does not fit or is not finite, or the folder cannot be written.
    """
    in_first(lambda: check_new(workdir))
    with tokenizers_of(model, tokenizer) as folders:
        names = [f"tokenizer{'' if i == 0 else f'_{i + 1}'}" for i in range(len(folders))]
        pads = [None] * len(folders) if tokenizer is None else paddings(model, folders)
        ends = [clip_vocabulary(str(folder)).end for folder in folders]

        def reading(places: Sequence[str]) -> StableDiffusion:
            chosen = [ClipTokenizer(place, pad=pad) for place, pad in zip(places, pads, strict=True)]
            return stable_diffusion.of(model, chosen, ends, prediction)

        found = reading([str(folder) for folder in folders])
        files = {
            UNET: found.pending_unet(),
            TEXT: found.pending_text(),
            AUTOENCODER: found.pending_autoencoder(),
        }
        if loras:
            _merge(found, files, loras)
        config = _config(reading([HERE + name for name in names]), files[UNET])
        for path, text in overrides:
            override(config, path, text)

        def fill(folder: pathlib.Path) -> None:
            for name, source in zip(names, folders, strict=True):
                copy_tokenizer(source, folder / name)
            for name, settings in (
                (SCHEDULER, found.scheduler),
                (LOW_RES_SCHEDULER, model.low_res_scheduler),
            ):
                if settings:
                    (folder / name).write_text(json.dumps(settings, indent=1) + "\n")
            (folder / CONFIG_FILE).write_text(configs.to_json(config))

        _make(workdir, files, fill)
    return f"wrote {_count(files):,} parameters of {model.path} to {workdir}\n{_about(found)}"


def convert_unet(model: PublishedModel, base: str, workdir: str) -> str:
    """Make `workdir` a copy of the run `base` with the U-Net of another file, such as a distilled one.

    Raises:
      UserError: `base` is no run that `convert` has made, has been trained since, or contains `workdir`; or a tensor
        does not fit its U-Net; or as `convert`.
    """
    in_first(lambda: check_new(workdir))
    source, fix = pathlib.Path(base).expanduser(), "give a run that jaxdiff.convert made of Stable Diffusion"
    expect((source / UNET).exists(), "--base", base, f"a run with {UNET}", fix, "none")
    if latest_step(epath.Path(source)) is not None:
        raise UserError(
            f"--base={base}: expected a converted run as it was made, got one with checkpoints. "
            "Fix: convert its model again, and give that folder"
        )
    inside = pathlib.Path(workdir).expanduser().resolve().is_relative_to(source.resolve())
    expect(not inside, "--workdir", workdir, "a folder outside --base", "give another folder", "one in it")
    experiment: Experiment = configs.build(read_config(base))
    known = model_of(experiment, base)
    shapes = {
        path: each for path, each in known.arrays.items() if not path.startswith(f"{stable_diffusion.TEXT}/")
    }
    entries = stable_diffusion.unet_entries(known.layout, model.unet.tensors)
    files = {UNET: to_pending(entries, model.unet.tensors, unflatten_dict(shapes, sep="/"))}
    copied = [source / name for name in (CONFIG_FILE, SCHEDULER, LOW_RES_SCHEDULER)]
    copied += [*source.glob("tokenizer*/**/*"), *source.glob(f"{FROZEN}/*")]
    kept = [path for path in copied if path.is_file() and path != source / UNET]

    def fill(folder: pathlib.Path) -> None:
        for path in kept:
            place = folder / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)

    _make(workdir, files, fill, sum(path.stat().st_size for path in kept))
    return f"wrote {_count(files):,} parameters of {model.path}, and the rest of {base}, to {workdir}"


def model_of(experiment: Experiment, workdir: str) -> Exported:
    """The model of a run; parameters that come from files stay in the files' precision, and are not yet read."""
    task: Any = experiment.task
    trained = restore_params(experiment, workdir, experiment.mesh.make())
    frozen = {name: nn.meta.unbox(origin.read()) for name, origin in task.frozen.items()}
    return Exported(task.denoiser, task.codec, task.full_params(trained, frozen), frozen[latent.NAME])


def _merge(model: StableDiffusion, files: Files, loras: Sequence[tuple[str, float]]) -> None:
    """Merge LoRA files into the parameters to write."""
    text = {f"{stable_diffusion.TEXT}/{path}": each for path, each in files[TEXT].items()}
    params = unflatten_dict(files[UNET] | text, sep="/")
    codec = model.codec(FileWeights(HERE + AUTOENCODER))
    for path, array in merged(Exported(model.denoiser, codec, params, {}), loras).items():
        pending = Pending(array.shape, array.dtype, lambda array=array: array, path)
        own = path.removeprefix(f"{stable_diffusion.TEXT}/")
        files[UNET if own == path else TEXT][own] = pending


def _make(workdir: str, files: Files, fill: Callable[[pathlib.Path], None], more: int = 0) -> None:
    """Make the folder of a run; of several processes the first one does.

    Args:
      files: parameters to write.
      fill: writes everything else into the folder.
      more: bytes that `fill` writes.
    """
    arrays = [each for tensors in files.values() for each in tensors.values()]
    size = more + sum(int(np.prod(each.shape)) * np.dtype(each.dtype).itemsize for each in arrays)

    def make() -> None:
        with draft(workdir, size) as folder:
            (folder / FROZEN).mkdir()
            fill(folder)
            _write(files, folder, workdir)

    in_first(make)


def _write(files: Files, folder: pathlib.Path, workdir: str) -> None:
    """Write files of parameters into the folder of a run, and the record of their hashes.

    Raises:
      UserError: an array is not finite.
      RunFailure: what can be read back differs.
    """
    for name, tensors in files.items():
        write_safetensors(folder / name, {path: _finite(each) for path, each in tensors.items()})
    _check_written(files, folder, workdir)
    experiment: Experiment = configs.build(read_config(str(folder)))
    read = {name: origin.read() for name, origin in experiment.task.frozen.items()}
    # The folder is a draft: its name is not that of the run.
    stored: Experiment = configs.build(configs.from_json((folder / CONFIG_FILE).read_text()))
    write_record(stored.task.frozen, read, epath.Path(folder) / RECORD)


def _config(model: StableDiffusion, unet: Mapping[str, Pending]) -> Any:
    """The config of the run."""
    steps = model.scheduler.get("num_train_timesteps", 1000)
    task = DenoisingTask(
        denoiser=model.denoiser,
        time_sampler=UniformSteps(steps),
        image_shape=(*model.image_size, 3),
        codec=model.codec(FileWeights(HERE + AUTOENCODER)),
        pretrained=_pretrained(unet),
    )
    text: Any = model.denoiser.conditioner.conditions["text"]
    return configs.spec(
        Experiment,
        task=configs.describe(task),
        optimizer=configs.spec(AdamW, learning_rate=1e-5),
        ema=configs.spec(Ema, decay=0.9999),
        data=configs.spec(
            Pipeline,
            source=configs.spec(
                ImageFolder, path="images", size=max(model.image_size), label=None, captions="txt"
            ),
            conditions=(configs.describe(Tokenize(text.tokenizer)),),
        ),
        sampling=configs.describe(_recipe(model)),
        recipes=configs.describe(schedulers.recipes(model.scheduler, STEPS, model.guidance)),
        sample_every=0,
    )


def _recipe(model: StableDiffusion) -> Recipe:
    """The recipe of the published scheduler; DDIM's, with a warning, if it is unknown here."""
    try:
        return schedulers.recipe(model.scheduler, None, STEPS, model.guidance)
    except UserError as error:
        _log.warning(
            "the run is sampled by DDIM unless --sampler says otherwise; its own scheduler: %s", error
        )
        return schedulers.recipe(model.scheduler, "ddim", STEPS, model.guidance)


def _pretrained(unet: Mapping[str, Pending]) -> dict[str, FileWeights]:
    """The origin of each module of the denoiser: the network, and the parts of the conditioner."""
    modules = {
        path.split("/")[0] if path.startswith("network/") else "/".join(path.split("/")[:2]) for path in unet
    }
    found = {module: FileWeights(HERE + UNET, module) for module in sorted(modules)}
    return found | {stable_diffusion.TEXT: FileWeights(HERE + TEXT)}


def _finite(pending: Pending) -> Pending:
    """The same array, refused if it is not finite."""

    def read() -> np.ndarray:
        array = pending.read()
        check_finite({pending.origin: array})
        return array

    return dataclasses.replace(pending, read=read)


def _check_written(files: Files, folder: pathlib.Path, workdir: str) -> None:
    """Raise `RunFailure` unless what was written is what was read, bit for bit."""
    for name, tensors in files.items():
        written = FileWeights(str(folder / name)).arrays()
        for path, pending in tensors.items():
            same = written[path].tobytes() == pending.read().tobytes()
            release(written[path])
            if not same:
                raise RunFailure(
                    f"--workdir={workdir}: expected to read back {path} as it was written, got other values. "
                    "Fix: convert again, to another disk"
                )


def _count(files: Files) -> int:
    return sum(int(np.prod(each.shape)) for tensors in files.values() for each in tensors.values())


def _about(model: StableDiffusion) -> str:
    """What was found in the files, for the user."""
    network, scheduler, latents = model.layout.network, model.scheduler, model.codec_network.latent_channels
    widths = ", ".join(str(level.width) for level in network.levels)
    texts = " and ".join(f"{each.layers} layers of {each.width}" for each in model.encoders)
    return (
        f"  U-Net: widths {widths}; {model.layout.in_channels} input channels; tokens of {model.layout.context_width}\n"
        f"  text encoder: {texts}\n"
        f"  images of {model.image_size[0]} x {model.image_size[1]}; latents of {latents} channels\n"
        f"  predicts {scheduler['prediction_type']}; {scheduler.get('_class_name', 'DDIMScheduler')}"
    )
