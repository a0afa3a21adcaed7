"""The training loop around the step: resume, log, save, and stop cleanly on a signal."""

import collections
import contextlib
import dataclasses
import itertools
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from jaxdiff.distributed.mesh import batch_ways, global_batch
from jaxdiff.errors import RunFailure, UserError
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.disk import check_space
from jaxdiff.training.ema import EmaProfile
from jaxdiff.training.metrics import RunningMean
from jaxdiff.training.programs import Programs, repeated
from jaxdiff.training.retention import Retention
from jaxdiff.training.signals import Stopped, StopSignals
from jaxdiff.training.snapshots import Snapshots
from jaxdiff.training.state import abstract_state, create_state
from jaxdiff.training.step import Frozen, Task, TrainState, jit_train_step, make_train_step
from jaxdiff.training.writers import Writers, open_writers

IN_FLIGHT = 2
"""Steps dispatched before the loop waits: enough to hide the host's work, with few batches in memory."""

PATIENCE = 10
"""Fewest consecutive steps without a finite loss before a run is given up."""

_log = logging.getLogger(__name__)

Batches = Callable[[int], Iterator[Any]]
"""``batches(first_step)``: this process's rows of every batch from a step on, numpy arrays with a leading batch axis.

The batch of a step must be a pure function of the step, or a resumed run differs from an uninterrupted one.
"""


class Hook(NamedTuple):
    """A function of the state, called every `every` steps and after the last: draw samples, evaluate.

    `call(state, step)` may return scalars and images (uint8 [height, width, channels]) to log. It must not keep the
    state, whose memory the next step reuses. A `UserError` is logged, and training goes on.
    """

    every: int
    call: Callable[[TrainState, int], Mapping[str, Any] | None]


@runtime_checkable
class Settings(Protocol):
    """Length of a run, and how often it reports and saves; an `Experiment` has all of these.

    Attributes:
      steps: optimizer steps in total.
      accumulation: micro-batches per step.
      log_every, checkpoint_every: in steps.
      keep: number of latest checkpoints to keep.
      keep_also: further checkpoints that stay.
      seed: of every random draw.
    """

    @property
    def steps(self) -> int: ...

    @property
    def accumulation(self) -> int: ...

    @property
    def log_every(self) -> int: ...

    @property
    def checkpoint_every(self) -> int: ...

    @property
    def keep(self) -> int: ...

    @property
    def keep_also(self) -> Retention | None: ...

    @property
    def seed(self) -> int: ...


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

    Raises:
      Stopped: SIGTERM or SIGINT arrived; the state is saved, and the same call continues from there.
      RunFailure: every step of a log window was skipped, since its loss or gradient was not finite; or the last
        checkpoint could not be written; or no checkpoint is intact.
      UserError: the batch does not divide, or the checkpoint belongs to another config.
    """
    workdir = epath.Path(workdir).expanduser().resolve()
    frozen = frozen or Frozen()
    with (
        StopSignals() as signals,
        Checkpoints(workdir / "checkpoints", settings.keep, settings.keep_also, files=files) as checkpoints,
        Snapshots(workdir) if ema.snapshot_every else contextlib.nullcontext() as snapshots,
    ):
        if snapshots is not None:
            hooks = [Hook(ema.snapshot_every, snapshots.save), *hooks]
        layout = (task, optimizer, mesh)
        abstract = abstract_state(*layout, ema.count, untrained)
        found = checkpoints.newest(lambda step: checkpoints.restore(step, abstract))
        start, state = found or (0, create_state(*layout, settings.seed, ema.count, untrained, abstract))
        if start > settings.steps:
            text = "steps=%d: nothing is left to train, since the newest intact checkpoint has step %d"
            _log.warning(text, settings.steps, start)
        if start >= settings.steps:
            return state
        # An old checkpoint is deleted after its successor is complete.
        check_space(checkpoints.directory, abstract, settings.keep + 1 - len(checkpoints.steps()))
        first, iterator = _peek(batches(start))
        size = _batch_size(first, settings.accumulation, mesh)
        step = make_train_step(task, optimizer, ema, settings.seed, settings.accumulation)
        programs = Programs(jit_train_step(step, abstract, mesh, frozen), abstract, frozen)
        rows = size // jax.process_count()
        writers = open_writers(workdir, start, settings.steps)
        try:
            for batch in (first, *(repeated(example, rows) for example in prototypes)):
                programs.compiled(global_batch(batch, mesh))
            return _Run(settings, programs, frozen, mesh, hooks, checkpoints, writers, signals, size).go(
                state, start, iterator
            )
        finally:
            writers.close()


@dataclasses.dataclass
class _Run:
    """The moving parts of `run`, after setup."""

    settings: Settings
    step: Callable[[TrainState, Any, Frozen], Any]
    frozen: Frozen
    mesh: Mesh
    hooks: Sequence[Hook]
    checkpoints: Checkpoints
    writers: Writers
    signals: StopSignals
    batch_size: int
    skipped: int = 0
    measured: set[str] = dataclasses.field(default_factory=set)

    def go(self, state: TrainState, start: int, iterator: Iterator[Any]) -> TrainState:
        steps, means, in_flight = self.settings.steps, RunningMean(), collections.deque()
        clock = _Clock()
        # Collectives of several steps at once can starve the CPU's only thread pool, and there is nothing to hide.
        allowed = 0 if self.mesh.devices.flat[0].platform == "cpu" else IN_FLIGHT
        hidden = None if jax.process_index() == 0 else True  # None: shown on a terminal only
        with tqdm(
            total=steps, initial=start, disable=hidden, file=sys.stderr, unit="step", smoothing=0.05
        ) as bar:
            for step in range(start + 1, steps + 1):
                state, metrics = self.step(state, global_batch(next(iterator), self.mesh), self.frozen)
                means.add(metrics)
                in_flight.append(metrics["loss"])
                if len(in_flight) > allowed:
                    in_flight.popleft().block_until_ready()
                bar.update()
                if step % self.settings.log_every == 0 or step == steps:
                    self._report(step, means, clock, bar)
                with clock.paused():
                    self._after(step, state)
        self._warn_of_the_best()
        return state

    def _after(self, step: int, state: TrainState) -> None:
        """Save, stop, and call hooks, where they are due."""
        last, stop = step == self.settings.steps, self.signals.caught(step)
        if step % self.settings.checkpoint_every == 0 or last or stop:
            self._save(step, state, last=last or bool(stop))
        if stop:
            raise Stopped(stop, step)
        for hook in self.hooks:
            if step % hook.every == 0 or last:
                values = self._values(hook, state, step)
                self.writers.write(step, values)
                self._rate(step, state, values)

    def _values(self, hook: Hook, state: TrainState, step: int) -> Mapping[str, Any]:
        """What a hook returns. One that fails costs its output only."""
        try:
            return hook.call(state, step) or {}
        except UserError as error:
            _log.warning("step %d: %s; training goes on", step, error)
            return {}

    def _warn_of_the_best(self) -> None:
        """Log a warning if no number of the name of `Retention.best` was measured: no checkpoint was kept for it."""
        name = self.settings.keep_also.best if self.settings.keep_also else None
        if name is not None and self.measured and name not in self.measured:
            listed = ", ".join(sorted(self.measured))
            _log.warning("keep_also.best=%r: no number of this name was measured, but %s", name, listed)

    def _rate(self, step: int, state: TrainState, values: Mapping[str, Any]) -> None:
        """Keep a checkpoint of this step if its evaluation is among the best."""
        self.measured |= {each for each, value in values.items() if np.ndim(value) == 0}
        name = self.settings.keep_also.best if self.settings.keep_also else None
        if name is not None and name in values:
            value = float(values[name])
            if math.isfinite(value) and self.checkpoints.would_stay(step, value):
                self._save(step, state, last=False)
                self.checkpoints.rate(step, value)

    def _report(self, step: int, means: RunningMean, clock: "_Clock", bar: Any) -> None:
        window = means.steps
        values = means.take()  # waits for the device, so the clock is read after it
        values["images_per_second"] = window * self.batch_size / clock.restart()
        self.writers.write(step, values)
        bar.set_postfix({"loss": f"{values['loss']:.4g}", "images/s": f"{values['images_per_second']:.4g}"})
        self.skipped = self.skipped + window if math.isnan(values["loss"]) else 0
        if self.skipped >= max(self.settings.log_every, PATIENCE):
            raise RunFailure(
                f"step {step}: loss or gradient was not finite in any of the last {self.skipped} steps. "
                "Lower the learning rate, or check the data; the checkpoints are good"
            )

    def _save(self, step: int, state: TrainState, last: bool) -> None:
        """Save. A failure before the end costs one checkpoint; at the end it is an error."""
        self.writers.drain()  # a killed run has the rows up to its checkpoint
        try:
            self.checkpoints.save(step, state)
            if last:
                self.checkpoints.wait()
        except RunFailure as error:
            if last:
                raise RunFailure(f"{error}. Make room, and run the same command again") from error
            _log.warning("%s; training goes on", error)


class _Clock:
    """Seconds of training, without the time of saving and of hooks."""

    def __init__(self):
        self._begin, self._pause = time.perf_counter(), 0.0

    def paused(self) -> "_Clock":
        return self

    def __enter__(self) -> None:
        self._pause = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self._begin += time.perf_counter() - self._pause

    def restart(self) -> float:
        now = time.perf_counter()
        seconds, self._begin = now - self._begin, now
        return max(seconds, 1e-9)


def _peek(iterator: Iterator[Any]) -> tuple[Any, Iterator[Any]]:
    """The first item, and an iterator that still yields it."""
    first = next(iterator)
    return first, itertools.chain([first], iterator)


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
