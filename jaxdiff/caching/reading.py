"""Training from a cache: the pipeline of an experiment with its encoded examples in place of the source."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from jaxdiff.caching import checks, key
from jaxdiff.caching.folder import Folder, Records
from jaxdiff.caching.outcomes import Choose, Read
from jaxdiff.caching.records import read
from jaxdiff.data.classes import Labelled, names_of
from jaxdiff.data.pipeline import Pipeline, Source
from jaxdiff.data.sources import Example
from jaxdiff.experiment import Experiment
from jaxdiff.runs import weights
from jaxdiff.tasks import precomputed
from jaxdiff.tasks.denoising import DenoisingTask

FLAG = "config.data.encoded"


def training_data(experiment: Experiment, workdir: epath.PathLike) -> Pipeline:
    """The pipeline of training batches: that of the experiment, or its cache if `Pipeline.encoded` names one.

    The batches of both are the same, up to what is encoded, for equal seeds: transforms that choose draw as before.

    Args:
      workdir: the run's folder, whose record has the hashes of its frozen networks.

    Raises:
      UserError: the cache is not complete, or something else has made it; the error names what changed.
    """
    pipeline = experiment.data
    if pipeline.encoded is None:
        return pipeline
    task, folder = key.task_of(experiment), Folder(pipeline.encoded, FLAG)
    description = folder.complete()
    found = key.key_of(
        experiment, description.fields, weights.read_record(epath.Path(workdir) / weights.RECORD)
    )
    checks.check(folder, description, found, pipeline, "make a cache with this config, or train without one")
    trees = {field: _tree(task, field) for field in description.fields}
    source: Source = EncodedSource(folder.path, key.source_of(pipeline), trees)
    if isinstance(pipeline.source, Labelled):
        source = Labelled(source, pipeline.source.classes)
    transforms, conditions = (tuple(map(Choose, each)) for each in (pipeline.transforms, pipeline.conditions))
    conditions = (*conditions, Read())
    return dataclasses.replace(
        pipeline, source=source, transforms=transforms, conditions=conditions, encoded=None
    )


def _tree(task: DenoisingTask, field: str) -> Any:
    """The structure of what is stored for a field."""
    codec, conditioner = task.codec, task.denoiser.conditioner
    image = field == task.data_field
    values = codec.example(1, task.image_shape) if image else conditioner.example(1, task.data_shape)[field]
    shapes = task.frozen_shapes()
    frozen = {name: shapes[name] for name in precomputed.networks(task, field)}
    return jax.eval_shape(
        lambda frozen, values: precomputed.precompute(task, field, frozen, values), frozen, values
    )


@dataclasses.dataclass(frozen=True)
class EncodedSource:
    """The examples of a complete cache.

    Attributes:
      path: its folder.
      raw: the source that it was made of.
      trees: what is stored for each encoded field, as shapes.
    """

    path: str
    raw: Source
    trees: Mapping[str, Any]

    def open(self) -> "EncodedExamples":
        folder = Folder(self.path, FLAG)
        return EncodedExamples(self, folder.records(folder.shards(folder.complete())))


class EncodedExamples:
    """The opened examples of `EncodedSource`; classes are those of the source."""

    image_shape: tuple[int | None, ...] | None = None

    def __init__(self, source: EncodedSource, records: Records):
        examples = source.raw.open()
        self.num_classes, self.classes = examples.num_classes, names_of(examples)
        self._source, self._records = source, records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        return read(self._records[index], self._source.trees)

    def __repr__(self) -> str:
        return f"{self._source!r}.open()"
