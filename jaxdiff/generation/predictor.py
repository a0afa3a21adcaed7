"""Predictions of a trained model without samples, in Python::

clip = Predictor.load("runs/scenes_unclip_clip")
vectors = clip({"image": images})["image_vector"]  # from uint8 [n, 24, 24, 3] to float32 [n, width]
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxdiff import config as configs
from jaxdiff.config.overrides import override
from jaxdiff.distributed import partitioning
from jaxdiff.distributed.mesh import batch_ways
from jaxdiff.errors import expect
from jaxdiff.experiment import Experiment
from jaxdiff.runs import weights
from jaxdiff.runs.restore import restore_params
from jaxdiff.runs.stages import read_model_config
from jaxdiff.tasks.protocols import Predictive
from jaxdiff.typing import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """A trained model of a `Predictive` task.

    Attributes:
      task, params: the model, with all parameters.
      frozen: trees by the names in `Task.frozen`.
      mesh: the devices that share a batch.
      batch_size: the largest number of examples at once.
    """

    task: Predictive
    params: Params
    frozen: Mapping[str, Params]
    mesh: jax.sharding.Mesh
    batch_size: int = 256

    @classmethod
    def load(
        cls,
        workdir: str,
        *,
        step: int | None = None,
        overrides: Sequence[tuple[str, str]] = (),
        packages: Sequence[str] = (),
    ) -> "Predictor":
        """The EMA of a training run.

        Args:
          workdir: the run's folder, with its ``config.json`` and checkpoints.
          step: of the checkpoint; the latest if None.
          overrides: (path, text) pairs that change the stored config.
          packages: packages other than jaxdiff whose classes the stored config may build.

        Raises:
          UserError: there is no such run, or its task predicts nothing.
        """
        config, every = read_model_config(workdir), ("jaxdiff", *packages)
        for path, text in overrides:
            override(config, path, text, packages=every)
        experiment: Experiment = configs.build(config, packages=every)
        task: Any = experiment.task
        fix = "use a run of a task such as ContrastiveTask"
        expect(
            isinstance(task, Predictive), "config.task", type(task).__name__, "a task with predictions", fix
        )
        mesh = experiment.mesh.make()
        frozen = weights.load(task.frozen, mesh, epath.Path(workdir).expanduser())
        return cls(task, restore_params(experiment, workdir, mesh, step), frozen, mesh)

    def __call__(self, fields: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The predictions on examples, by name, [n, ...] each.

        Args:
          fields: the fields that the task reads, as they are stored, with n rows each; the others are ignored.

        Raises:
          UserError: there is no example, or fields have different numbers of rows, or the task cannot read them.
        """
        given = {name: np.asarray(values) for name, values in fields.items()}
        given = {name: values for name, values in given.items() if values.dtype.kind not in "USO"}
        lengths = {name: len(values) if values.ndim else 0 for name, values in given.items()}
        n, fix = max(lengths.values(), default=0), "give as many rows of each field"
        expect(n > 0 and set(lengths.values()) == {n}, "fields", lengths, "one number of rows, above 0", fix)
        self.task.check_fields(given)
        parts = [self._batch(given, first, n) for first in range(0, n, self.batch_size)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _batch(self, given: Mapping[str, np.ndarray], first: int, n: int) -> dict[str, np.ndarray]:
        """The predictions on rows `first` and after; the batch is filled with copies of its last row."""
        ways = batch_ways(self.mesh)
        size = -(-min(self.batch_size, n) // ways) * ways
        index = np.minimum(np.arange(first, first + size), n - 1)
        fields = {name: values[index] for name, values in given.items()}
        found = _predict(self.task, self.mesh, self.params, self.frozen, fields)
        return {name: np.asarray(values)[: n - first] for name, values in found.items()}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict(task: Predictive, mesh: jax.sharding.Mesh, params: Params, frozen: Any, fields: Any) -> Any:
    fields = jax.lax.with_sharding_constraint(fields, partitioning.batch_sharding(mesh))
    found = task.predict(params, frozen, fields)
    return jax.lax.with_sharding_constraint(found, partitioning.replicated(mesh))
