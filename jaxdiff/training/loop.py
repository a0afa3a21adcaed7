"""The loop around the train step: resume, log, save, and stop cleanly when asked to."""

import collections
import contextlib
import dataclasses
import itertools
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import optax
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from jaxdiff.distributed.mesh import batch_ways, global_batch
from jaxdiff.errors import require
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.ema import EmaProfile
from jaxdiff.training.metrics import RunningMean, Writers, open_writers
from jaxdiff.training.snapshots import Snapshots
from jaxdiff.training.step import (
    Task,
    TrainState,
    abstract_state,
    create_state,
    jit_train_step,
    make_train_step,
)

IN_FLIGHT = 2
"""Steps handed to the device before the loop waits: enough to hide the host, and few batches in memory."""

PATIENCE = 10
"""Fewest steps in a row without a finite loss before a run is given up."""

_log = logging.getLogger(__name__)

Batches = Callable[[int], Iterator[Any]]
"""From a step on: for each step this process's part of its batch, numpy arrays with a leading batch axis.

The batch of a step must be a pure function of the step, or a resumed run is not the run that it resumes.
"""


class Stopped(Exception):
    """The run was asked to stop by the signal `signal_number`, and has saved its state at `step`."""

    def __init__(self, signal_number: int, step: int = 0):
        super().__init__(f"stopped by {signal.Signals(signal_number).name} at step {step}, which is saved")
        self.signal_number = signal_number
        self.step = step


class Hook(NamedTuple):
    """Something to do with the state every so many steps, and at the end: draw samples, evaluate.

    `call(state, step)` may return scalars, and images (uint8 [height, width, channels]), to be written. It
    must not keep the state, whose memory the next step takes over.
    """

    every: int
    call: Callable[[TrainState, int], Mapping[str, Any] | None]


@runtime_checkable
class Settings(Protocol):
    """How long a run is and how often it reports and saves, in optimizer steps; an `Experiment` has it all.

    Attributes:
      steps: in all.
      accumulation: into how many micro-batches each batch is cut.
      log_every, checkpoint_every: in steps.
      keep: how many checkpoints stay.
      seed: of every draw.
    """

    steps: int
    accumulation: int
    log_every: int
    checkpoint_every: int
    keep: int
    seed: int


def run(
    task: Task,
    batches: Batches,
    settings: Settings,
    *,
    optimizer: optax.GradientTransformation,
    ema: EmaProfile,
    mesh: Mesh,
    workdir: epath.PathLike,
    hooks: Sequence[Hook] = (),
) -> TrainState:
    """Train from the latest checkpoint in `workdir`, or from the start, to `settings.steps`.

    Called again after any interruption, it ends in the same state, bit for bit, as a run that was never
    interrupted.

    Raises:
      Stopped: SIGTERM or SIGINT came; the state is saved, and the same call goes on from there.
      RuntimeError: no step of a whole log window could be applied, for its loss or gradient was not finite;
        or the last checkpoint could not be written.
      UserError: the batch does not divide, or the checkpoint belongs to another config.
    """
    workdir = epath.Path(workdir).expanduser().resolve()
    with (
        _Signals() as signals,
        Checkpoints(workdir / "checkpoints", settings.keep) as checkpoints,
        Snapshots(workdir) if ema.snapshot_every else contextlib.nullcontext() as snapshots,
    ):
        if snapshots is not None:
            hooks = [Hook(ema.snapshot_every, snapshots.save), *hooks]
        extra_emas = len(ema.extra_emas())
        abstract = abstract_state(task, optimizer, mesh, extra_emas)
        start = checkpoints.latest()
        if start is None:
            start, state = 0, create_state(task, optimizer, mesh, settings.seed, extra_emas)
        else:
            state = checkpoints.restore(start, abstract)
            _log.info("restored step %d of %s", start, checkpoints.directory)
        if start >= settings.steps:
            return state
        first, iterator = _peek(batches(start))
        size = _batch_size(first, settings.accumulation, mesh)
        step_fn = make_train_step(task, optimizer, ema, settings.seed, settings.accumulation)
        step_fn = jit_train_step(step_fn, abstract, mesh).lower(abstract, global_batch(first, mesh)).compile()
        writers = open_writers(workdir, start)
        try:
            return _Run(settings, step_fn, mesh, hooks, checkpoints, writers, signals, size).go(
                state, start, iterator
            )
        finally:
            writers.close()


@dataclasses.dataclass
class _Run:
    """The moving parts of `run`, once all is set up."""

    settings: Settings
    step_fn: Callable[[TrainState, Any], Any]
    mesh: Mesh
    hooks: Sequence[Hook]
    checkpoints: Checkpoints
    writers: Writers
    signals: "_Signals"
    batch_size: int
    barren: int = 0

    def go(self, state: TrainState, start: int, iterator: Iterator[Any]) -> TrainState:
        steps, means, in_flight = self.settings.steps, RunningMean(), collections.deque()
        clock = _Clock()
        # Collectives of several steps at once can starve the CPU's one pool of threads; there is nothing to hide there.
        allowed = 0 if jax.default_backend() == "cpu" else IN_FLIGHT
        hidden = None if jax.process_index() == 0 else True  # None: shown on a terminal only
        with tqdm(
            total=steps, initial=start, disable=hidden, file=sys.stderr, unit="step", smoothing=0.05
        ) as bar:
            for step in range(start + 1, steps + 1):
                state, metrics = self.step_fn(state, global_batch(next(iterator), self.mesh))
                means.add(metrics)
                in_flight.append(metrics["loss"])
                if len(in_flight) > allowed:
                    in_flight.popleft().block_until_ready()
                bar.update()
                if step % self.settings.log_every == 0 or step == steps:
                    self._report(step, means, clock, bar)
                stop = self.signals.caught(step)
                if step % self.settings.checkpoint_every == 0 or step == steps or stop:
                    with clock.paused():
                        self._save(step, state, last=step == steps or bool(stop))
                if stop:
                    raise Stopped(stop, step)
                with clock.paused():
                    for hook in self.hooks:
                        if step % hook.every == 0 or step == steps:
                            self.writers.write(step, hook.call(state, step) or {})
        return state

    def _report(self, step: int, means: RunningMean, clock: "_Clock", bar: Any) -> None:
        window = means.steps
        values = means.take()  # waits for the device, so the clock is read after it
        values["images_per_second"] = window * self.batch_size / clock.restart()
        self.writers.write(step, values)
        bar.set_postfix({"loss": f"{values['loss']:.4g}", "images/s": f"{values['images_per_second']:.4g}"})
        self.barren = self.barren + window if math.isnan(values["loss"]) else 0
        if self.barren >= max(self.settings.log_every, PATIENCE):
            raise RuntimeError(
                f"step {step}: loss or gradient was not finite in any of the last {self.barren} steps. "
                "Lower the learning rate, or check the data; the checkpoints are good"
            )

    def _save(self, step: int, state: TrainState, last: bool) -> None:
        """Save; on the way a failure costs one checkpoint, at the end it is an error."""
        try:
            self.checkpoints.save(step, state)
            if last:
                self.checkpoints.wait()
        except Exception as error:
            if last:
                raise RuntimeError(f"step {step} was not saved in {self.checkpoints.directory}") from error
            _log.warning("step %d: a checkpoint could not be saved, training goes on: %s", step, error)


class _Signals:
    """SIGTERM and SIGINT, kept until the end of a step; a second SIGINT acts at once.

    In a run of several processes JAX itself watches for SIGTERM, and lets all of them stop at the same step.
    """

    def __init__(self):
        self._caught = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        if jax.process_count() == 1:
            try:
                for number in (signal.SIGTERM, signal.SIGINT):
                    self._previous[number] = signal.signal(number, self._catch)
            except ValueError:
                _log.info("not in the main thread: signals are left alone")
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self._caught:
            raise KeyboardInterrupt
        self._caught = number

    def caught(self, step: int) -> int:
        """The signal to stop for after `step`, or 0. All processes get the same answer."""
        if jax.process_count() > 1:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0
        return self._caught


class _Clock:
    """Seconds of training: what saving and hooks take is left out."""

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
    """The first item, and an iterator that still has it."""
    first = next(iterator)
    return first, itertools.chain([first], iterator)


def _batch_size(batch: Any, accumulation: int, mesh: Mesh) -> int:
    """Examples in the batch of all processes, if they divide over the mesh and the micro-batches."""
    size = len(jax.tree.leaves(batch)[0]) * jax.process_count()
    unit = batch_ways(mesh) * accumulation
    require(
        size % unit == 0, "batch_size", size,
        f"it does not divide into {batch_ways(mesh)} devices x {accumulation} micro-batches",
        f"use {max(size // unit, 1) * unit} or {(size // unit + 1) * unit}",
    )  # fmt: skip
    return size
