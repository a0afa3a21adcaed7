"""Sampling from the command line: a request with its models becomes images on disk."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.cli import conditions as cli
from jaxdiff.cli import limits, pictures, values
from jaxdiff.cli.arguments import naming_flags
from jaxdiff.cli.controls import with_controls
from jaxdiff.cli.output import PICTURES
from jaxdiff.cli.progress import progress
from jaxdiff.cli.request import STRENGTH, Request, by_stage
from jaxdiff.cli.stages import sample_stages
from jaxdiff.conditioning.condition import Condition
from jaxdiff.data.classes import listed
from jaxdiff.errors import UserError, expect
from jaxdiff.generation import inputs
from jaxdiff.generation.cascade import Cascade, consistency
from jaxdiff.generation.generator import Generator
from jaxdiff.generation.handover import Handover
from jaxdiff.generation.lora import with_lora

Load = Callable[..., Generator]
"""``load(workdir, *, step, overrides, sampler, packages, guiding_model)`` -> a generator; see `Generator.load`."""


class Samples(NamedTuple):
    """Images, and the conditions that they were sampled for."""

    images: np.ndarray
    requested: cli.Requested
    conditions: Mapping[str, Condition]


def run(request: Request, load: Load = Generator.load) -> None:
    """Sample as requested, and write the output.

    Args:
      request: the parsed command line.
      load: opens a run.
    """
    with naming_flags(request.flags):
        _run(request, load)


def _run(request: Request, load: Load) -> None:
    expect(not by_stage(request.flags), "--steps and --noise", "NAME=...", "values without the names of stages",
           "leave the names out; this is a run of one model")  # fmt: skip
    options = {
        "overrides": request.overrides,
        "sampler": request.flags.sampler,
        "packages": request.packages,
        "guiding_model": request.guiding_model,
    }
    refiner = [] if request.refiner is None else [(request.refiner[0], None)]
    runs = [*request.runs, *refiner]
    _check(request, [load(folder, step=step, with_weights=False, **options) for folder, step in runs])
    stages = [load(folder, step=step, **options) for folder, step in request.runs]
    if request.loras:
        stages = [with_lora(stage, request.loras) for stage in stages]
    stages = [with_controls(stage, request.flags) for stage in stages]
    stages += [load(folder, step=step, **options) for folder, step in refiner]
    cascade = sample_cascade if request.flags.cascade else sample_model
    sample = sample_refined if refiner else cascade
    _write(request, sample(request, stages))


def _check(request: Request, outlines: Sequence[Generator]) -> None:
    """Raise `UserError` for data that are no images, and for conditions that the models lack or cannot take.

    Args:
      outlines: the models without weights, which may take long to read.
    """
    flags = request.flags
    for (folder, _), outline in zip(request.runs, outlines, strict=False):
        fix = "sample it in Python, with Generator.load"
        for shape in (outline.image_shape, outline.data_shape):
            expect(len(shape) == 3, "--workdir", folder, "a model of images", fix, f"one of data {shape}")
    if flags.control_net or flags.t2i_adapter or flags.ip_adapter:
        return  # their conditions are known once their files are read
    available, given = _conditions(outlines), _given(request, outlines)
    _, requested = _noise_and_conditions(request, given, len(outlines[0].data_shape))
    for outline in outlines:
        conditioner = outline.denoiser.conditioner
        own = {name: value for name, value in requested.values.items() if name in conditioner.conditions}
        inputs.check(conditioner, own, requested.n, outline.data_shape)
    levels = cli.levels(flags.level, available)
    cli.apply_levels(
        requested.values, given, {name: level for name, level in levels.items() if name in given}
    )
    cli.guidance(flags.guidance, available)
    cli.one_for_all("--negative", flags.negative, available)


def _conditions(stages: Sequence[Generator]) -> values.Conditions:
    """The conditions of models by name; earlier models have precedence."""
    every = [stage.denoiser.conditioner.conditions for stage in reversed(stages)]
    return {name: each for conditions in every for name, each in conditions.items()}


def _given(request: Request, stages: Sequence[Generator]) -> values.Conditions:
    """The conditions that the command line gives; a cascade passes the others on."""
    if request.flags.cascade is None:
        return _conditions(stages)
    cascade = Cascade(tuple(stages), request.flags.cascade_field)
    passed_on = {cascade.field_of(number) for number in range(1, len(stages))}
    return {name: each for name, each in cascade.conditions.items() if name not in passed_on}


def run_stages(request: Request) -> None:
    """Sample a run of several stages as requested, and write the output."""
    with naming_flags(request.flags):
        _write(request, Samples(*sample_stages(request)))


def _write(request: Request, samples: Samples) -> None:
    """Write the output."""
    images, requested, conditions = samples
    arrays = cli.to_arrays(requested.values, conditions, len(images))
    pictures.write(request.out, images, arrays, len(requested.rows) or None)
    shown = requested.rows[: len(images)]
    rows = f", a row for each class: {listed(shown)}" if shown else ""
    print(f"{len(images)} images in {request.flags.out}{rows if request.out.suffix in PICTURES else ''}")


def check_output(request: Request, requested: cli.Requested, shape: inputs.Shape, batch: int) -> None:
    """Raise `UserError` unless the output can hold the requested images, and the memory and the disk have room."""
    limits.check(request.out, requested.n, shape, batch)
    pictures.check(request.out, requested.n, shape, len(requested.rows) or None)


def _noise_and_conditions(
    request: Request, available: values.Conditions, rank: int
) -> tuple[dict[str, np.ndarray | None], cli.Requested]:
    """The initial noise and perhaps that of every step, and conditions for as many images unless ``--n`` is given.

    Args:
      rank: axes of one example of the diffused data.
    """
    flags = request.flags
    noise, draws = None, None
    if flags.noise:
        expect(len(flags.noise) == 1, "--noise", flags.noise[-1], "one file", "give it once")
        noise = values.noise("--noise", flags.noise[0])
        if noise.ndim == rank + 2 and len(noise) > 0:
            noise, draws = noise[0], noise[1:] if len(noise) > 1 else None
    n = len(noise) if flags.n is None and noise is not None else flags.n
    return {"noise": noise, "draws": draws}, cli.conditions(flags, available, n)


def sample_model(request: Request, stages: Sequence[Generator]) -> Samples:
    """Images of one model."""
    flags, generator = request.flags, stages[0]
    available, size = generator.denoiser.conditioner.conditions, request.size
    noise, requested = _noise_and_conditions(request, available, len(generator.data_shape))
    given = cli.apply_levels(requested.values, available, cli.levels(flags.level, available))
    height, width = generator.size(given, size)
    shape = (height, width, generator.image_shape[2])
    check_output(request, requested, shape, generator.batch_size)
    mask = (
        None if flags.mask is None else values.image_of_size("--mask", flags.mask, (height, width, 1)) >= 128
    )
    if flags.known is None and flags.edit is None:
        given, mask = cli.apply_mask(given, available, mask)
        fix = "give --known FILE to complete an image, or --edit FILE to change one"
        expect(mask is None, "--mask", flags.mask, "an image as well", fix, "none")
    options: dict[str, Any] = {
        "seed": flags.seed,
        "guidance": cli.guidance(flags.guidance, available),
        "image_size": size,
        "mask": mask,
        **noise,
        "negative": cli.one_for_all("--negative", flags.negative, available),
        "on_step": progress(),
        **given,
    }
    requested = requested._replace(values=given)
    if flags.edit is not None:
        edited = _edit(request, generator, shape, requested.n, options)
        return Samples(edited, requested, available)
    pixels = None if flags.known is None else values.image_of_size("--known", flags.known, shape)
    return Samples(generator(requested.n, known=pixels, **options), requested, available)


def _edit(
    request: Request, generator: Generator, shape: inputs.Shape, n: int, options: Mapping[str, Any]
) -> np.ndarray:
    """``--edit``: n edits of one image."""
    flags, available = request.flags, generator.denoiser.conditioner.conditions
    if flags.known is not None:
        raise UserError(
            f"--known={flags.known!r}: expected either --known or --edit, got both. Fix: leave one out"
        )
    image = values.image_of_size("--edit", flags.edit, shape)
    source = cli.one_for_all("--source", flags.source, available) if flags.source else None
    options = {name: value for name, value in options.items() if name != "draws" or value is not None}
    expect("draws" not in options, "--noise", "...", "the initial noise alone for --edit", "give one draw")
    strength = STRENGTH if flags.strength is None else flags.strength
    return generator.edit(np.broadcast_to(image, (n, *shape)), strength, before=source, **options)


def sample_refined(request: Request, stages: Sequence[Generator]) -> Samples:
    """Images of a base model and its refiner."""
    flags, (base, refiner), size = request.flags, stages, request.size
    models = [model.of_size(*size) if size else model for model in (base, refiner)]
    available = _conditions(models)
    noise, requested = _noise_and_conditions(request, available, len(base.data_shape))
    check_output(request, requested, models[0].image_shape, base.batch_size)
    assert request.refiner is not None
    images = Handover(*models, request.refiner[1])(
        requested.n,
        seed=flags.seed,
        **noise,
        guidance=cli.guidance(flags.guidance, available),
        negative=cli.one_for_all("--negative", flags.negative, available),
        on_step=progress(),
        **requested.values,
    )
    return Samples(images, requested, available)


def sample_cascade(request: Request, stages: Sequence[Generator]) -> Samples:
    """Images of the last stage of a cascade; prints how consistent each stage is with the one before."""
    flags, cascade = request.flags, Cascade(tuple(stages), request.flags.cascade_field)
    available, requested = cascade.conditions, cli.conditions(flags, _given(request, stages), flags.n)
    last = stages[-1]
    check_output(request, requested, last.image_shape, last.batch_size)
    images = cascade.run(
        requested.n,
        seed=flags.seed,
        guidance=cli.guidance(flags.guidance, available),
        levels=cli.levels(flags.level, available),
        on_step=progress(),
        **requested.values,
    )
    for number, difference in enumerate(consistency(images), 1):
        size = "x".join(map(str, images[number].shape[1:3]))
        print(
            f"stage {number}: {size}, {difference:.2f} of 255 levels (RMS) from the images of the stage before"
        )
    return Samples(images[-1], requested, available)
