"""The training loop around the step: resume, log, save, go back from divergence, and stop cleanly on a signal."""

import contextlib
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import optax
from etils import epath
from jax.sharding import Mesh

from jaxdiff.distributed.mesh import batch_ways, global_batch
from jaxdiff.distributed.peers import Peers
from jaxdiff.errors import RunFailure, UserError
from jaxdiff.training import diagnosis, passing_over
from jaxdiff.training.attempt import Attempt, Diverged, Observers
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.disk import check_space
from jaxdiff.training.ema import EmaProfile
from jaxdiff.training.fault_tolerance import FaultTolerance
from jaxdiff.training.goodput import Goodput
from jaxdiff.training.limits import Profile, TimeLimit
from jaxdiff.training.logged import last_logged
from jaxdiff.training.passing_over import Window
from jaxdiff.training.programs import Programs, repeated
from jaxdiff.training.settings import Batches, Hook, Settings
from jaxdiff.training.signals import Stopped, StopSignals
from jaxdiff.training.skipping import Skips
from jaxdiff.training.snapshots import Snapshots
from jaxdiff.training.spikes import SpikeReports
from jaxdiff.training.state import abstract_state, create_state
from jaxdiff.training.step import Frozen, Task, TrainState, jit_train_step, make_train_step
from jaxdiff.training.watchdog import Watchdog
from jaxdiff.training.writers import open_writers

__all__ = ["Batches", "Hook", "Settings", "Stopped", "run"]

LISTED = 8
"""Most names of arrays in an error."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What a command brings into a run: its clock, its limits and its signals.

    Attributes:
      began: when the command began, by `time.monotonic()`; when `run` is called if None.
      time_limit: seconds after `began` before which the run saves and stops; None for no limit.
      profile: first and last step of a trace in the folder `profile`; None for none.
      steps: a context around the steps, in which stop signals wait for the end of a step.
      peers: the other processes; None if there are none.
    """

    began: float | None = None
    time_limit: float | None = None
    profile: tuple[int, int] | None = None
    steps: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    peers: Peers | None = None


def run(
    task: Task,
    batches: Batches,
    settings: Settings,
    *,
    optimizer: optax.GradientTransformation,
    ema: EmaProfile,
    mesh: Mesh,
    workdir: epath.PathLike,
    frozen: Frozen | None = None,
    untrained: Sequence[str] = (),
    hooks: Sequence[Hook] = (),
    files: Mapping[str, str] | None = None,
    prototypes: Sequence[Mapping[str, Any]] = (),
    tolerance: FaultTolerance | None = None,
    surroundings: Surroundings | None = None,
) -> TrainState:
    """Train from the latest checkpoint in `workdir`, or from the start, to `settings.steps`.

    Called again after any interruption, it ends in the same state, bit for bit, as a run that was never
    interrupted.

    Args:
      frozen: arrays on the mesh that the task uses and that are not trained.
      untrained: patterns of the task's own parameters that are not trained; `frozen.params` holds these.
      files: texts stored with each checkpoint, by file name, such as the run's config.
      prototypes: an example of each shape of batches, for batches of several shapes. The step is compiled for all of
        them before it is first called.
      tolerance: what happens after updates that are not finite, and when the run hangs; the defaults if None.
      surroundings: the clock, the limits and the signals of a command; none if None.

    Raises:
      Stopped: a stop signal arrived, or the time limit; the state is saved, and the same call continues from there.
      RunFailure: updates were not finite, also after the batches in question were passed over; or the last checkpoint
        could not be written; or no checkpoint is intact.
      UserError: the batch does not divide, or the checkpoint belongs to another config.
    """
    workdir = epath.Path(workdir).expanduser().resolve()
    around = surroundings or Surroundings()
    began = time.monotonic() if around.began is None else around.began
    goodput, tolerance = Goodput(began), tolerance or FaultTolerance()
    late = around.peers.late if around.peers is not None else lambda: ""
    with (
        Checkpoints(workdir / "checkpoints", settings.keep, settings.keep_also, files=files) as checkpoints,
        Snapshots(workdir) if ema.snapshot_every else contextlib.nullcontext() as snapshots,
        Watchdog(tolerance.hang, late) as watchdog,
        contextlib.closing(Profile(workdir / "profile", around.profile)) as profile,
    ):
        if snapshots is not None:
            hooks = [Hook(ema.snapshot_every, snapshots.save, quick=True), *hooks]
        limit = None if around.time_limit is None else TimeLimit(around.time_limit, began)
        spikes = SpikeReports(tolerance.spikes) if tolerance.spikes else None
        observers = Observers(goodput, watchdog, profile, around.peers, spikes, limit)
        model = _Model(task, optimizer, ema, mesh, settings, frozen or Frozen(), untrained, tolerance)
        return _Run(
            model, batches, hooks, checkpoints, snapshots, observers, workdir, files or {}, prototypes, around
        ).go()


@dataclasses.dataclass(frozen=True)
class _Model:
    """What is trained, and how."""

    task: Task
    optimizer: optax.GradientTransformation
    ema: EmaProfile
    mesh: Mesh
    settings: Settings
    frozen: Frozen
    untrained: Sequence[str]
    tolerance: FaultTolerance

    def abstract(self) -> TrainState:
        layout = (self.task, self.optimizer, self.mesh)
        return abstract_state(*layout, self.ema.count, self.untrained, self.tolerance.kept_losses)

    def first(self, abstract: TrainState) -> TrainState:
        layout = (self.task, self.optimizer, self.mesh, self.settings.seed)
        return create_state(*layout, self.ema.count, self.untrained, abstract, self.tolerance.kept_losses)

    def programs(self, abstract: TrainState) -> Programs:
        settings = self.settings
        spikes = self.tolerance.skip_spikes
        step = make_train_step(
            self.task, self.optimizer, self.ema, settings.seed, settings.accumulation, spikes
        )
        return Programs(jit_train_step(step, abstract, self.mesh, self.frozen), abstract, self.frozen)


@dataclasses.dataclass
class _Run:
    """The attempts of a run: after updates that are not finite another one starts from the last checkpoint."""

    model: _Model
    batches: Batches
    hooks: Sequence[Hook]
    checkpoints: Checkpoints
    snapshots: Snapshots | None
    observers: Observers
    workdir: epath.Path
    files: Mapping[str, str]
    prototypes: Sequence[Mapping[str, Any]]
    around: Surroundings

    def go(self) -> TrainState:
        settings, abstract = self.model.settings, self.model.abstract()
        start, state = self._newest(abstract)
        if start is not None and start >= settings.steps:
            _say_finished(start, settings.steps)
            return state
        windows = self._windows(start)
        # An old checkpoint is deleted after its successor is complete.
        check_space(self.checkpoints.directory, abstract, settings.keep + 1 - len(self.checkpoints.steps()))
        programs = self.model.programs(abstract)
        done = last_logged(self.workdir) if start is not None else 0
        try:
            while True:
                attempted = self._attempt(state, start or 0, windows, programs, done)
                if not isinstance(attempted, Diverged):
                    return attempted
                windows, done = self._go_back(attempted, windows), attempted.last
                state = attempted = None  # two states at once may not fit into memory
                start, state = self._newest(abstract)
        finally:
            if jax.process_index() == 0:
                print(self.observers.goodput, flush=True)

    def _newest(self, abstract: TrainState) -> tuple[int | None, TrainState]:
        """The newest checkpoint with its step, or the state to start from."""
        began, goodput = time.monotonic(), self.observers.goodput
        with self.observers.watchdog.paused():
            found = self.checkpoints.newest(lambda step: self.checkpoints.restore(step, abstract))
            newest = found or (None, self.model.first(abstract))
        goodput.add("restart" if found else "start", time.monotonic() - began)
        return newest

    def _windows(self, start: int | None) -> tuple[Window, ...]:
        """The windows that the run passes over. Until the first checkpoint nothing binds the folder."""
        if start is not None:
            return passing_over.read(self.workdir)
        passing_over.write(self.workdir, ())
        return ()

    def _attempt(
        self, state: TrainState, start: int, windows: Sequence[Window], programs: Programs, done: int
    ) -> TrainState | Diverged:
        settings, mesh, observers = self.model.settings, self.model.mesh, self.observers
        data = passing_over.passing_over(self.batches, start, windows)
        with observers.goodput.spent("start"):
            first = next(data)
        size = _batch_size(first, settings.accumulation, mesh)
        rows = size // jax.process_count()
        writers = open_writers(self.workdir, start, settings.steps)
        try:
            with observers.goodput.spent("compile"), observers.watchdog.paused():
                for batch in (first, *(repeated(example, rows) for example in self.prototypes)):
                    programs.compiled(global_batch(batch, mesh))
            with StopSignals() as signals, self.around.steps():
                return Attempt(
                    settings, programs, self.model.frozen, mesh, self.hooks, self.checkpoints, writers, signals,
                    size, observers, Skips(self.model.tolerance.max_skipped), done,
                ).go(state, start, itertools.chain([first], data))  # fmt: skip
        finally:
            writers.close()
            data.close()

    def _go_back(self, end: Diverged, windows: tuple[Window, ...]) -> tuple[Window, ...]:
        """The windows with a new one: the batches since the last checkpoint.

        Raises:
          RunFailure: the batches after this checkpoint have been passed over before.
        """
        with contextlib.suppress(RunFailure):  # a save that failed is no checkpoint to go back to
            self.checkpoints.wait()
        step = self.checkpoints.latest() or 0
        if any(window.step == step for window in windows):
            self._give_up(end, step, windows)
        if self.snapshots is not None:
            self.snapshots.discard_after(step)
        found = (*windows, Window(step, end.last - step, end.first))
        passing_over.write(self.workdir, found)
        text = "going back to step %d, and passing over the batches of steps %d to %d: updates %d to %d were skipped"
        _log.warning(text, step, step + 1, end.last, end.first, end.last)
        return found

    def _give_up(self, end: Diverged, step: int, windows: Sequence[Window]) -> NoReturn:
        """Write what reproduces the first skipped step, and raise the error that ends the run."""
        model, at = self.model, passing_over.position(end.first - 1, windows)
        batch = next(self.batches(at))
        state = end.state.replace(step=jnp.full_like(end.state.step, end.first - 1))
        with self.observers.watchdog.paused():
            names = diagnosis.diagnose(
                model.task, state, batch, model.frozen, model.settings.seed, model.settings.accumulation,
                model.mesh,
            )  # fmt: skip
        file = diagnosis.store(self.workdir, end.first, at, model.settings.seed, batch, names, self.files)
        raise RunFailure(
            f"step {end.last}: expected finite updates after passing over the batches since step {step}, got "
            f"{end.last - end.first + 1} in a row that were skipped; not finite: {_shortened(names)}. Fix: see {file}; "
            "check the data, or start a run with a lower learning rate from this one with --from-workdir"
        )


def _say_finished(step: int, steps: int) -> None:
    if step > steps:
        text = "steps=%d: nothing is left to train, since the newest intact checkpoint has step %d"
        _log.warning(text, steps, step)
    elif jax.process_index() == 0:
        print(f"the run is finished: its newest checkpoint has step {step}, the last one", flush=True)


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) or "nothing, so the loss was a spike") + more


def _batch_size(batch: Any, accumulation: int, mesh: Mesh) -> int:
    """Examples in the global batch, if they divide over the mesh and the micro-batches."""
    size = len(jax.tree.leaves(batch)[0]) * jax.process_count()
    ways = batch_ways(mesh)
    unit = ways * accumulation
    if size % unit:
        raise UserError(
            f"batch_size={size}: expected a multiple of {ways} devices x {accumulation} micro-batches, got {size}. "
            f"Fix: use {max(size // unit, 1) * unit} or {(size // unit + 1) * unit}"
        )
    return size
