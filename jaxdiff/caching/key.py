"""The key of a cache: what made it. A config whose key differs is refused, with the names of what differs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdiff import config as configs
from jaxdiff.config.blocks import TARGET, resolve
from jaxdiff.data.classes import Labelled
from jaxdiff.data.pipeline import Pipeline, Recorded, Source, contents_of, fingerprint_of
from jaxdiff.errors import expect
from jaxdiff.experiment import Experiment
from jaxdiff.tasks import precomputed
from jaxdiff.tasks.denoising import DenoisingTask

Key = Mapping[str, Any]
"""JSON values in the form of a config: ``data.source``, ``data.conditions[0].tokenizer``, ``task.frozen``, ..."""


def key_of(experiment: Experiment, fields: Sequence[str], hashes: Mapping[str, str]) -> Key:
    """The key of the cache of an experiment's examples.

    Args:
      fields: the encoded ones.
      hashes: SHA-256 of the frozen networks that encode them, by name.
    """
    task = task_of(experiment)
    parts = [precomputed.made_by(task, field) for field in fields]
    return {
        "data": _of_data(experiment.data),
        "task": {
            **{path: _without_places(block) for part in parts for path, block in part.items()},
            "frozen": {name: hashes[name] for field in fields for name in precomputed.networks(task, field)},
        },
    }


def task_of(experiment: Experiment) -> DenoisingTask:
    """The task of an experiment, if it can have a cache; else raises `UserError`."""
    task: Any = experiment.task
    fits, fix = isinstance(task, DenoisingTask), "train without a cache"
    expect(fits, "config.task", type(task).__name__, "a DenoisingTask, whose fields are encoded", fix)
    return task


def source_of(pipeline: Pipeline) -> Source:
    """The source of a pipeline, with labels as the data set numbers them."""
    return pipeline.source.source if isinstance(pipeline.source, Labelled) else pipeline.source


def changes(stored: Key, found: Key) -> list[str]:
    """What differs between the key of a cache and that of a config: ``data.source.files: 12 -> 13``."""
    changed = configs.differences(stored, found)
    return [f"{name}: {_short(old)} -> {_short(new)}" for name, (old, new) in changed.items()]


def _of_data(pipeline: Pipeline) -> dict[str, Any]:
    source = source_of(pipeline)
    contents = contents_of(source) if isinstance(source, Recorded) else fingerprint_of(source)
    block = _without_places(configs.describe(source)) if dataclasses.is_dataclass(source) else {}
    chains = {name: getattr(pipeline, name) for name in ("transforms", "conditions")}
    return {
        "source": {**block, "contents": contents},
        **{name: _without_places(configs.describe(each)) for name, each in chains.items()},
    }


def _without_places(block: Any) -> Any:
    """A config without the fields that say where files lie, as JSON values; see `data.pipeline.Recorded`."""
    if isinstance(block, list | tuple):
        return [_without_places(each) for each in block]
    if not hasattr(block, "items"):
        return block
    target = block.get(TARGET)
    places = () if target is None else getattr(resolve(target), "places", ())
    return {name: _without_places(value) for name, value in block.items() if name not in places}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"
