"""A stage of several: one model, or two of which the second takes the last steps."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from jaxdiff.conditioning.condition import Condition
from jaxdiff.errors import expect
from jaxdiff.generation.generator import Generator
from jaxdiff.generation.handover import Handover
from jaxdiff.runs.stages import Stage

Model = Generator | Handover
"""A stage: one model, or two of which the second takes the last steps."""


def load(stage: Stage, packages: Sequence[str], with_weights: bool) -> Model:
    """The model or the models of a stage; see `Stages.load`."""
    open_run = functools.partial(Generator.load, packages=packages, with_weights=with_weights)
    first = open_run(stage.workdir)
    return first if stage.last is None else Handover(first, open_run(stage.last), last=1)


def first_model(model: Model) -> Generator:
    """The model itself, or the one that begins."""
    return model.first if isinstance(model, Handover) else model


def conditions_of(model: Model) -> dict[str, Condition]:
    """The conditions of a stage, by name."""
    parts = (model.second, model.first) if isinstance(model, Handover) else (model,)
    return {name: each for part in parts for name, each in part.denoiser.conditioner.conditions.items()}


def with_steps(model: Model, steps: int | None) -> Model:
    """The stage with another number of steps; its own if None."""
    if steps is None:
        return model
    if isinstance(model, Handover):
        first, second = (with_steps(part, steps) for part in (model.first, model.second))
        return dataclasses.replace(model, first=first, second=second)
    return dataclasses.replace(model, recipe=dataclasses.replace(model.recipe, steps=steps))


def noise_of(name: str, model: Generator, noise: np.ndarray | None) -> dict[str, np.ndarray]:
    """The options of a model's call for the noise of the stage `name`: its start, and the draws of its steps.

    Raises:
      UserError: the noise has another shape or type.
    """
    if noise is None:
        return {}
    array, shape, draws = np.asarray(noise), model.data_shape, 1 + model.steps_with_noise
    got, fix = f"{array.dtype}{list(array.shape)}", "give such floats"
    alone = array.ndim == len(shape) + 1
    fits = array.shape[-len(shape) :] == shape and (alone or array.shape[: -len(shape) - 1] == (draws,))
    listed = ", ".join(map(str, shape))
    expected = (
        f"[n, {listed}]" if draws == 1 else f"[{draws}, n, {listed}] for {draws} draws, or [n, {listed}]"
    )
    expect(fits and np.issubdtype(array.dtype, np.floating), f"noise.{name}", got, expected, fix)
    if alone:
        return {"noise": array}
    return {"noise": array[0]} | ({"draws": array[1:]} if draws > 1 else {})
