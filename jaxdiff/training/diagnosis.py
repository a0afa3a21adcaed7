"""Diagnosis of a step whose update is not finite: a small file with what reproduces it."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxdiff.distributed.first_process import in_first
from jaxdiff.distributed.mesh import global_batch
from jaxdiff.training.step import Frozen, Task, TrainState, make_finiteness_check

FOLDER = "diverged"
CONFIG = "config.json"


def diagnose(
    task: Task, state: TrainState, batch: Any, frozen: Frozen, seed: int, accumulation: int, mesh: Mesh
) -> list[str]:
    """The names of the arrays of a step that are not finite: of the batch, draws, losses, gradients, parameters.

    Args:
      state: the state before the step.
      batch: this process's rows of the batch, NumPy arrays.
    """
    check = jax.jit(make_finiteness_check(task, seed, accumulation))
    found = jax.device_get(check(state, global_batch(batch, mesh), frozen))
    leaves, _ = jax.tree.flatten_with_path(found)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, finite in leaves if not finite]


def store(
    workdir: epath.Path,
    step: int,
    position: int,
    seed: int,
    batch: Any,
    names: list[str],
    files: Mapping[str, str],
) -> epath.Path:
    """Write what reproduces a step: config, step, seed, examples of the batch, and the arrays that are not finite.

    Args:
      step: the step, 1-based.
      position: of its batch in the order of the data, 0-based.
      batch: this process's rows; the field `index`, if there is one, says which examples they are.
      files: texts of the run by file name, among them its config.

    Returns:
      The file. In a run of several processes the first one writes it.
    """
    indices = batch.get("index") if isinstance(batch, Mapping) else None
    if indices is not None:
        indices = np.ravel(multihost_utils.process_allgather(np.asarray(indices), tiled=True)).tolist()
    record = {
        "step": step,
        "seed": seed,
        "position": position,
        "indices": indices,
        "not_finite": names,
        "config": json.loads(files[CONFIG]) if CONFIG in files else None,
    }
    file = workdir / FOLDER / f"{step}.json"

    def write() -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record, indent=1) + "\n")

    in_first(write, raises=OSError)
    return file
