"""Snapshots: stored averages of a run, and averages of other lengths computed from them after training."""

import contextlib
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxdiff.distributed.first_process import in_first
from jaxdiff.errors import RunFailure, expect
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.power_ema import PowerEma, check_std, coefficients
from jaxdiff.training.retention import Retention
from jaxdiff.typing import Params

FOLDER = "averages"

_log = logging.getLogger(__name__)


class Snapshots:
    """Checkpoints of the averages alone, ``<workdir>/averages/<step>``. None is deleted unless the run goes back.

    Attributes:
      checkpoints: the underlying `Checkpoints`.
    """

    def __init__(self, workdir: epath.PathLike, read_only: bool = False):
        self.checkpoints = Checkpoints(
            epath.Path(workdir) / FOLDER, 1, Retention(every_steps=1), read_only=read_only
        )

    def save(self, state: Any, step: int) -> Mapping[str, Any]:
        """Store the averages of `state`, as a hook of the training loop. A failure loses this snapshot only."""
        try:
            self.checkpoints.save(step, state.replace(params=(), opt_state=(), task_state=()))
        except RunFailure as error:
            _log.warning("%s; training goes on", error)
        return {}

    def steps(self) -> list[int]:
        return self.checkpoints.steps()

    def discard_after(self, step: int) -> None:
        """Delete the averages of later steps: the run has gone back to `step`, and will pass other states."""
        with contextlib.suppress(RunFailure):  # logged by the next save
            self.checkpoints.wait()
        in_first(lambda: [self.checkpoints.delete(later) for later in self.steps() if later > step])

    def restore(self, step: int, extra_emas: int, abstract: Params) -> tuple[Params, ...]:
        """All averages of a step: the one for sampling, then the `extra_emas`."""
        self.checkpoints.verify(step)
        rest = (
            self.checkpoints.restore_part(step, "extra_emas", (abstract,) * extra_emas) if extra_emas else ()
        )
        return (self.checkpoints.restore_part(step, "ema", abstract), *rest)

    def __enter__(self) -> "Snapshots":
        return self

    def __exit__(self, *exception: object) -> None:
        self.checkpoints.close()


def reconstruct(
    workdir: epath.PathLike, ema: PowerEma, abstract: Params, std: float, step: int | None = None
) -> tuple[Params, int]:
    """Post-hoc EMA: the power-function average of relative length `std`, from stored snapshots.

    Karras et al. 2024, "EDM2", algorithm 3. Nearly equals the average that training would have tracked. One snapshot at
    a time is in memory.

    Args:
      workdir: folder of a run whose `ema` has stored snapshots.
      ema: the run's profile.
      abstract: shapes, types and shardings of the parameters.
      std: relative standard deviation, see `PowerEma`. Most accurate near or between the tracked ones.
      step: number of steps after which the average ends; the last snapshot's if None.

    Returns:
      The average, and the step.

    Raises:
      UserError: there are no snapshots up to that step.
    """
    check_std("std", std)
    with Snapshots(workdir, read_only=True) as snapshots:
        steps = [kept for kept in snapshots.steps() if step is None or kept <= step]
        fix = "give a later step, or train with PowerEma(snapshot_every=...)"
        expect(len(steps) > 0, "step", step, f"a snapshot up to this step in {workdir}", fix, "none")
        end = steps[-1] if step is None else step
        times = np.repeat(np.array(steps, np.float64), len(ema.stds))
        weights = coefficients(times, np.tile(ema.stds, len(steps)), end, std).reshape(len(steps), -1)
        total = None
        for kept, row in zip(steps, weights, strict=True):
            every = snapshots.restore(kept, len(ema.extra_emas()), abstract)
            averages = every[-len(ema.stds) :]  # without another one for samples
            total = _add(total, row.astype(np.float32), averages)
    return total, end


@functools.partial(jax.jit, donate_argnums=0)
def _add(total: Params | None, weights: Any, averages: Sequence[Params]) -> Params:
    """``total + sum_i weights[i] averages[i]``."""
    parts = [jax.tree.map(lambda leaf, i=i: weights[i] * leaf, tree) for i, tree in enumerate(averages)]
    parts = parts if total is None else [total, *parts]
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *parts)
