"""Published models as runs: the folder of a run whose parameters are files of their own, and no checkpoint."""

import dataclasses
import json
import logging
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from jaxdiff import config as configs
from jaxdiff.codecs import latent
from jaxdiff.config.overrides import override
from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.published_tokenizers import ClipTokenizer
from jaxdiff.data.text import Tokenize, Tokenizer
from jaxdiff.data.tokenizer_files import clip_vocabulary, copy_tokenizer
from jaxdiff.denoiser import Denoiser
from jaxdiff.distributed.first_process import in_first
from jaxdiff.errors import UserError, expect
from jaxdiff.experiment import Experiment
from jaxdiff.interop import schedulers, stable_diffusion
from jaxdiff.interop.lora.networks import merged_params
from jaxdiff.interop.mapping import to_pending
from jaxdiff.interop.pending import Pending
from jaxdiff.interop.published import PublishedModel
from jaxdiff.interop.stable_diffusion import StableDiffusion
from jaxdiff.interop.stable_diffusion_export import Exported
from jaxdiff.interop.stable_diffusion_lora import networks_of
from jaxdiff.process.time_sampling import UniformSteps
from jaxdiff.runs.continuation import latest_step
from jaxdiff.runs.draft import check_new
from jaxdiff.runs.published_tokenizers import paddings, tokenizers_of
from jaxdiff.runs.restore import restore_params
from jaxdiff.runs.weights import AUTOENCODER, TEXT, UNET, FileWeights
from jaxdiff.runs.workdir import CONFIG_FILE, FROZEN, HERE, read_config
from jaxdiff.runs.writing import RunFiles, count, make
from jaxdiff.sampling.modifiers.inpainting import Blending
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW

_log = logging.getLogger(__name__)

SCHEDULER = "scheduler_config.json"
"""The settings of the published scheduler, in the run's folder."""

LOW_RES_SCHEDULER = "low_res_scheduler_config.json"
"""The same for the noise of the small image in an upscaler."""

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
        pads = None if tokenizer is None else paddings(model, folders)
        run, about = prepared(model, folders, pads, prediction, overrides, loras)
        make(workdir, {"": run})
    return f"wrote {count(run.files):,} parameters of {model.path} to {workdir}\n{about}"


def prepared(
    model: PublishedModel,
    folders: Sequence[pathlib.Path],
    pads: Sequence[int] | None = None,
    prediction: str | None = None,
    overrides: Sequence[tuple[str, str]] = (),
    loras: Sequence[tuple[str, float]] = (),
    steps: int = STEPS,
) -> tuple[RunFiles, str]:
    """The folder of a run that samples as a published model does, and what was found in its files, for the user.

    Args:
      model, prediction, overrides, loras: see `convert`.
      folders: of the tokenizer of each text encoder.
      pads: the id that fills up texts for each text encoder; None for those that the tokenizers name.
      steps: sampling steps of the run.

    Raises:
      UserError: as `convert`.
    """
    names = [f"tokenizer{'' if i == 0 else f'_{i + 1}'}" for i in range(len(folders))]
    ends = [clip_vocabulary(str(folder)).end for folder in folders]
    chosen_pads = [None] * len(folders) if pads is None else pads

    def reading(places: Sequence[str]) -> StableDiffusion:
        chosen = [ClipTokenizer(place, pad=pad) for place, pad in zip(places, chosen_pads, strict=True)]
        return stable_diffusion.of(model, chosen, ends, prediction)

    found = reading([str(folder) for folder in folders])
    files = {UNET: found.pending_unet(), TEXT: found.pending_text(), AUTOENCODER: found.pending_autoencoder()}
    if loras:
        _merge(found, files, loras)
    config = _config(reading([HERE + name for name in names]), files[UNET], steps)
    for path, text in overrides:
        override(config, path, text)

    def fill(folder: pathlib.Path) -> None:
        for name, source in zip(names, folders, strict=True):
            copy_tokenizer(source, folder / name)
        for name, settings in ((SCHEDULER, found.scheduler), (LOW_RES_SCHEDULER, model.low_res_scheduler)):
            if settings:
                (folder / name).write_text(json.dumps(settings, indent=1) + "\n")
        (folder / CONFIG_FILE).write_text(configs.to_json(config))

    return RunFiles(files, fill), _about(found)


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
    known = model_of(configs.build(read_config(base)), base)
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

    make(workdir, {"": RunFiles(files, fill, sum(path.stat().st_size for path in kept))})
    return f"wrote {count(files):,} parameters of {model.path}, and the rest of {base}, to {workdir}"


def model_of(experiment: Experiment, workdir: str) -> Exported:
    """The model of a run; parameters that come from files stay in the files' precision, and are not yet read."""
    task: Any = experiment.task
    trained = restore_params(experiment, workdir, experiment.mesh.make())
    frozen = {name: nn.meta.unbox(origin.read()) for name, origin in task.frozen.items()}
    return Exported(task.denoiser, task.codec, task.full_params(trained, frozen), frozen[latent.NAME])


def _merge(
    model: StableDiffusion, files: dict[str, dict[str, Pending]], loras: Sequence[tuple[str, float]]
) -> None:
    """Merge LoRA files into the parameters to write."""
    text = {f"{stable_diffusion.TEXT}/{path}": each for path, each in files[TEXT].items()}
    params = unflatten_dict(files[UNET] | text, sep="/")
    codec = model.codec(FileWeights(HERE + AUTOENCODER))
    known = Exported(model.denoiser, codec, params, {})
    for path, array in merged_params(networks_of(known), known.arrays, loras).items():
        pending = Pending(array.shape, array.dtype, lambda array=array: array, path)
        own = path.removeprefix(f"{stable_diffusion.TEXT}/")
        files[UNET if own == path else TEXT][own] = pending


def _config(model: StableDiffusion, unet: Mapping[str, Pending], steps: int) -> Any:
    """The config of the run."""
    task = DenoisingTask(
        denoiser=model.denoiser,
        time_sampler=UniformSteps(model.scheduler.get("num_train_timesteps", 1000)),
        image_shape=(*model.image_size, 3),
        codec=model.codec(FileWeights(HERE + AUTOENCODER)),
        data_field=data_field(model.denoiser),
        pretrained=_pretrained(unet),
    )
    text: Any = model.denoiser.conditioner.conditions["text"]
    found = schedulers.recipes(model.scheduler, steps, model.guidance)
    recipes = {name: with_inpainting(each, model.denoiser) for name, each in found.items()}
    return experiment(task, with_inpainting(_recipe(model, steps), model.denoiser), recipes, text.tokenizer)


def with_inpainting(recipe: Recipe, denoiser: Denoiser) -> Recipe:
    """The recipe that completes images as diffusers does, unless the network was trained to do so by itself."""
    own = not all(each.replaces_known for each in denoiser.conditioner.conditions.values())
    return dataclasses.replace(recipe, inpainting=None if own else Blending())


def data_field(denoiser: Denoiser) -> str:
    """The field of a batch with the images, or whatever is denoised: "image", unless a condition has that name."""
    return "target" if "image" in denoiser.conditioner.conditions else "image"


def experiment(
    task: DenoisingTask, recipe: Recipe, recipes: Mapping[str, Recipe], tokenizer: Tokenizer | None
) -> Any:
    """The config of a run with this task, which would be fine-tuned with images in a folder."""
    conditions = () if tokenizer is None else (configs.describe(Tokenize(tokenizer)),)
    size = max(task.image_shape[:2]) if len(task.image_shape) == 3 else 1
    source = configs.spec(
        ImageFolder, path="images", size=size, label=None, captions=None if tokenizer is None else "txt"
    )
    return configs.spec(
        Experiment,
        task=configs.describe(task),
        optimizer=configs.spec(AdamW, learning_rate=1e-5),
        ema=configs.spec(Ema, decay=0.9999),
        data=configs.spec(Pipeline, source=source, conditions=conditions),
        sampling=configs.describe(recipe),
        recipes=configs.describe(dict(recipes)),
        sample_every=0,
    )


def _recipe(model: StableDiffusion, steps: int) -> Recipe:
    """The recipe of the published scheduler; DDIM's, with a warning, if it is unknown here.

    Where the class of the scheduler is one for distilled models, it has their steps, and no guidance.
    """
    few = schedulers.distilled(model.scheduler)
    try:
        if few is not None:
            return schedulers.recipe(model.scheduler, None, few)
        return schedulers.recipe(model.scheduler, None, steps, model.guidance)
    except UserError as error:
        _log.warning(
            "the run is sampled by DDIM unless --sampler says otherwise; its own scheduler: %s", error
        )
        return schedulers.recipe(model.scheduler, "ddim", steps, model.guidance)


def _pretrained(unet: Mapping[str, Pending]) -> dict[str, FileWeights]:
    """The origin of each module of the denoiser: the network, and the parts of the conditioner."""
    modules = {
        path.split("/")[0] if path.startswith("network/") else "/".join(path.split("/")[:2]) for path in unet
    }
    found = {module: FileWeights(HERE + UNET, module) for module in sorted(modules)}
    return found | {stable_diffusion.TEXT: FileWeights(HERE + TEXT)}


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
