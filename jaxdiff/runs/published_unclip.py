"""Published unCLIP models as staged runs: a folder with an ordinary run for each stage."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from jaxdiff import config as configs
from jaxdiff.codecs.pixels import Pixels
from jaxdiff.codecs.protocol import Codec
from jaxdiff.codecs.standardized import Standardized
from jaxdiff.config.overrides import override
from jaxdiff.data.published_tokenizers import ClipTokenizer
from jaxdiff.data.tokenizer_files import copy_tokenizer
from jaxdiff.distributed.first_process import in_first
from jaxdiff.errors import UserError, expect
from jaxdiff.interop import published, schedulers, unclip
from jaxdiff.interop.config_fields import NUMBERS, OBJECT, check
from jaxdiff.interop.pending import Pending
from jaxdiff.interop.prior_transformer import STATISTICS
from jaxdiff.interop.unclip import CLIP, PublishedUnclip
from jaxdiff.models.clip_vision import MEAN, STD, ClipVisionEncoder
from jaxdiff.process.time_sampling import UniformSteps
from jaxdiff.runs.draft import check_new
from jaxdiff.runs.published import SCHEDULER, data_field, experiment, prepared
from jaxdiff.runs.published_tokenizers import check_ids, tokenizers_of
from jaxdiff.runs.stages import PhotoEncoder, Stage, StagedRun
from jaxdiff.runs.weights import RECORD, TEXT, UNET, FileWeights, write_record
from jaxdiff.runs.workdir import CONFIG_FILE, FROZEN, HERE
from jaxdiff.runs.writing import RunFiles, count, make, write_files
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.tasks.denoising import DenoisingTask

PHOTO = f"{FROZEN}/image_encoder.safetensors"
"""CLIP's image encoder in the folder of a staged run."""

TOKENIZER = "tokenizer"
LAST = {"super_res_first": "super_res_last"}
"""Networks whose last step another one takes."""

SAMPLING = {"prior": (25, 4.0), "decoder": (25, 8.0), "super_res_first": (7, 1.0), "super_res_last": (7, 1.0)}
"""Steps and guidance scale of each stage in the published pipelines."""

STABLE_STEPS = 20
"""Of the images of Stable unCLIP."""


def convert(model: PublishedUnclip, workdir: str, overrides: Sequence[tuple[str, str]] = ()) -> str:
    """Make `workdir` a staged run that samples as the published model does.

    Args:
      model: the published model.
      workdir: the folder to make.
      overrides: (path, text) pairs that change the configs of stages; each path begins with a stage's folder.

    Returns:
      A summary for the user.

    Raises:
      UserError: a file is damaged, a tensor does not fit or is not finite, or the folder cannot be written.
    """
    in_first(lambda: check_new(workdir))
    pixels = ("image",) if model.is_stable else ("decoder", *LAST, *LAST.values())
    known = (*(name for name in model.parts if name == "prior"), *pixels)
    own = _by_stage(overrides, known)
    runs = {"prior": _prior(model, own["prior"])} if "prior" in known else {}
    if model.is_stable:
        found = published.find(model.path)
        with tokenizers_of(found, None) as folders:
            runs["image"] = prepared(found, folders, overrides=own["image"], steps=STABLE_STEPS)[0]
        stages = [Stage("image", f"{HERE}image")]
    else:
        runs |= _pixels(model, own)
        stages = [
            Stage("decoder", f"{HERE}decoder", gives="low_res"),
            *(Stage("super_res", HERE + first, last=HERE + last) for first, last in LAST.items()),
        ]
    if "prior" in known:
        stages.insert(0, Stage("prior", f"{HERE}prior", gives="image"))
    staged, files = _staged(model, stages)

    def fill(folder: pathlib.Path) -> None:
        (folder / CONFIG_FILE).write_text(configs.to_json(configs.describe(staged)))
        write_files(files, folder, workdir)
        own = {name: photos.weights for name, photos in staged.encoders.items()}
        if own:
            read = {name: FileWeights(str(folder / PHOTO)).read() for name in own}
            write_record(own, read, epath.Path(folder) / RECORD)

    make(workdir, runs, fill)
    total = sum(count(run.files) for run in runs.values()) + count(files)
    shown = ", ".join(f"{name} {count(run.files):,}" for name, run in runs.items())
    return f"wrote {total:,} parameters of {model.path} to {workdir}\n  {shown}"


def _by_stage(overrides: Sequence[tuple[str, str]], known: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """The overrides of each stage."""
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in known}
    for path, text in overrides:
        stage, _, rest = path.partition(".")
        fix = f"write --config.{known[0]}.sampling.steps=10"
        expect(stage in found and bool(rest), f"--config.{path}", text, f"a path in {', '.join(known)}", fix)
        found[stage].append((rest, text))
    return found


def _staged(
    model: PublishedUnclip, stages: Sequence[Stage]
) -> tuple[StagedRun, Mapping[str, Mapping[str, Pending]]]:
    """The config of the staged run, and the files of its own."""
    noises = {"embedding": "image"} if model.is_stable else {}
    if "image_encoder" not in model.parts:
        return StagedRun(tuple(stages), noises=noises), {}
    encoder, pending = unclip.image_encoder(model.parts["image_encoder"])
    _check_photographs(model.path / "feature_extractor" / "preprocessor_config.json", encoder)
    photos = {"image": PhotoEncoder(encoder, FileWeights(HERE + PHOTO))}
    return StagedRun(tuple(stages), photos, noises), {PHOTO: pending}


def _check_photographs(file: pathlib.Path, encoder: ClipVisionEncoder) -> None:
    """Raise `UserError` if a model prepares photographs otherwise than CLIP does."""
    given, fix = published.settings(file), "use a model with CLIP's preprocessing"
    check(given, {"image_mean": NUMBERS, "image_std": NUMBERS}, file.name)
    for field, known in (("image_mean", MEAN), ("image_std", STD)):
        same = field not in given or max(abs(a - b) for a, b in zip(given[field], known, strict=True)) < 1e-6
        expect(same, field, given.get(field), f"{list(known)}, as CLIP has", fix)
    for field in ("size", "crop_size"):
        value = given.get(field, encoder.image_size)
        sides = set(value.values()) if OBJECT.holds(value) else {value}
        expect(
            sides == {encoder.image_size}, field, value, f"{encoder.image_size}, as the encoder reads", fix
        )


def _prior(model: PublishedUnclip, overrides: Sequence[tuple[str, str]]) -> RunFiles:
    """The run of the prior."""
    prefix = "prior_" if model.is_stable else ""
    folder = _tokenizer_of(model, f"{prefix}tokenizer", f"{prefix}text_encoder")
    tokenizer: Any = ClipTokenizer(str(folder))
    stage = unclip.prior_stage(model, tokenizer)
    codec = Standardized(FileWeights(HERE + UNET, STATISTICS), stage.image_shape[0])
    return _run("prior", stage, codec, overrides, folder)


def _pixels(
    model: PublishedUnclip, overrides: Mapping[str, Sequence[tuple[str, str]]]
) -> dict[str, RunFiles]:
    """The runs of the decoder and of super-resolution."""
    folder = _tokenizer_of(model, "tokenizer", "text_encoder")
    tokenizer: Any = ClipTokenizer(str(folder))
    decoder = unclip.decoder_stage(model, tokenizer)
    found = {"decoder": _run("decoder", decoder, Pixels(), overrides["decoder"], folder)}
    for name in (*LAST, *LAST.values()):
        stage = unclip.upscaler_stage(model, name, decoder.image_shape)
        found[name] = _run(name, stage, Pixels(), overrides[name])
    return found


def _tokenizer_of(model: PublishedUnclip, name: str, text_encoder: str) -> pathlib.Path:
    """The folder of a tokenizer, checked to be that of a text encoder."""
    folder = model.path / name
    if not folder.is_dir():
        raise UserError(
            f"path={str(folder)!r}: expected the folder of a tokenizer, got none. Fix: download the model completely"
        )
    check_ids(folder, model.parts[text_encoder])
    return folder


def _run(
    name: str,
    stage: unclip.Stage,
    codec: Codec,
    overrides: Sequence[tuple[str, str]],
    tokenizer: pathlib.Path | None = None,
) -> RunFiles:
    """The run of one stage, whose texts are read by the tokenizer in a folder."""
    files = {UNET: stage.own} | ({TEXT: stage.clip} if stage.clip else {})
    config = _config(name, stage, codec)
    for path, text in overrides:
        override(config, path, text)

    def fill(folder: pathlib.Path) -> None:
        if tokenizer is not None:
            copy_tokenizer(tokenizer, folder / TOKENIZER)
        (folder / SCHEDULER).write_text(json.dumps(stage.scheduler, indent=1) + "\n")
        (folder / CONFIG_FILE).write_text(configs.to_json(config))

    return RunFiles(files, fill)


def _config(name: str, stage: unclip.Stage, codec: Codec) -> Any:
    """The config of a stage's run, whose tokenizer is in the run's folder."""
    steps, scale = SAMPLING[name]
    denoiser, conditions = stage.denoiser, dict(stage.denoiser.conditioner.conditions)
    tokenizer: Any = ClipTokenizer(HERE + TOKENIZER) if "text" in conditions else None
    if tokenizer is not None:
        conditions["text"] = conditions["text"].clone(tokenizer=tokenizer)
        denoiser = denoiser.clone(conditioner=denoiser.conditioner.clone(conditions=conditions))
    task = DenoisingTask(
        denoiser=denoiser,
        time_sampler=UniformSteps(stage.scheduler.get("num_train_timesteps", 1000)),
        image_shape=stage.image_shape,
        codec=codec,
        data_field=data_field(denoiser),
        pretrained=_pretrained(stage),
    )
    guidance = ClassifierFree(scale)
    recipe = schedulers.recipe(stage.scheduler, None, steps, guidance)
    return experiment(task, recipe, schedulers.recipes(stage.scheduler, steps, guidance), tokenizer)


def _pretrained(stage: unclip.Stage) -> dict[str, FileWeights]:
    """The origin of each module of the denoiser."""
    modules = {_module(path) for path in stage.own if not path.startswith(f"{STATISTICS}/")}
    found = {module: FileWeights(HERE + UNET, module) for module in sorted(modules)}
    return found | ({CLIP: FileWeights(HERE + TEXT)} if stage.clip else {})


def _module(path: str) -> str:
    """The network, a part of the conditioner, or a module beside CLIP in the condition of a text."""
    names = path.split("/")
    if names[0] == "network":
        return names[0]
    return "/".join(names[: 3 if path.startswith(CLIP.removesuffix("clip")) else 2])
