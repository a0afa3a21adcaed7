"""Sampling a run of several stages from the command line."""

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.cli import conditions as cli
from jaxdiff.cli import limits, pictures, values
from jaxdiff.cli.request import NOT_IN_STAGES, Request, check_unused, named, steps_of
from jaxdiff.conditioning.condition import Condition
from jaxdiff.errors import UserError, expect
from jaxdiff.generation.stages import Stages


def sample_stages(request: Request) -> tuple[np.ndarray, cli.Requested, Mapping[str, Condition]]:
    """Images of the last stage, and the conditions that they were sampled for."""
    flags = request.flags
    check_unused(flags, NOT_IN_STAGES, "a flag for a run of several stages")
    changes = [path for path, text in request.overrides if (path, text) != ("sampling.steps", flags.steps)]
    if changes:
        path = changes[0]
        raise UserError(
            f"--config.{path}: expected no changes of a config, got one for a run of several stages. "
            "Fix: change the config of a stage, in the folder of its run"
        )
    folder = request.runs[0][0]
    outline = Stages.load(folder, packages=request.packages, with_weights=False)
    noise = {
        name: values.noise(f"--noise {name}", path) for name, path in named("--noise", flags.noise).items()
    }
    given = _names_given(flags)
    available = outline.conditions(given)
    optional = outline.may_be_left_out(given) - ({"text"} if flags.text else set())
    required = {name: each for name, each in available.items() if name not in optional}
    n = outline.count(given, noise) if flags.n is None else flags.n
    requested = cli.conditions(flags, required, n)
    shape = outline.image_shape
    expect(len(shape) == 3, "--workdir", folder, "stages that make images",
           "sample it in Python, with Stages.load", f"ones of data {shape}")  # fmt: skip
    limits.check(request.out, requested.n, shape)
    pictures.check(request.out, requested.n, shape, len(requested.rows) or None)
    options: dict[str, Any] = {
        "steps": steps_of(flags),
        "guidance": _guidance(flags.guidance),
        "negative": cli.one_for_all("--negative", flags.negative, outline.every_condition),
        "noise": noise,
        "levels": cli.levels(flags.level, outline.every_condition),
        **requested.values,
    }
    outline.chosen(**options)
    stages = Stages.load(folder, packages=request.packages)
    return stages(requested.n, seed=flags.seed, **options), requested, available


def _names_given(flags: argparse.Namespace) -> set[str]:
    """Names of the conditions that have a value on the command line."""
    words = [*flags.image, *flags.condition]
    return {name for name, _ in values.pairs("--condition", words)}


def _guidance(text: str | None) -> float | dict[str, Any] | None:
    """``--guidance``: a scale for every guided stage, or scales of some stages and of their conditions."""
    if text is None or "=" not in text:
        return None if text is None else values.number("--guidance", text)
    found: dict[str, Any] = {}
    for name, word in named("--guidance", text.split(",")).items():
        scale = values.number(f"--guidance {name}", word)
        stage, dot, condition = name.partition(".")
        other = found.get(stage)
        mixed = other is not None and not (dot and isinstance(other, dict))
        fix = f"give {stage}=... alone, or a scale for each of its conditions"
        expect(not mixed, f"--guidance {stage}", text, "one scale, or one for each condition", fix, "both")
        found[stage] = {**(other or {}), condition: scale} if dot else scale
    return found
