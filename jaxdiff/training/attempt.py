"""One attempt of a run: its steps from a checkpoint to the end, a stop signal, or updates that are never finite."""

import collections
import dataclasses
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxdiff.distributed.mesh import global_batch
from jaxdiff.distributed.peers import Peers
from jaxdiff.errors import RunFailure, UserError
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.goodput import Goodput
from jaxdiff.training.limits import Profile, TimeLimit
from jaxdiff.training.metrics import RunningMean
from jaxdiff.training.settings import Hook, Settings
from jaxdiff.training.signals import Stopped, StopSignals
from jaxdiff.training.skipping import Skips
from jaxdiff.training.spikes import SpikeReports
from jaxdiff.training.step import Frozen, TrainState
from jaxdiff.training.watchdog import Watchdog
from jaxdiff.training.writers import Writers

IN_FLIGHT = 2
"""Steps dispatched before the loop waits: enough to hide the host's work, with few batches in memory."""

LIMIT = "the time limit was reached"

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Diverged:
    """The end of an attempt whose last updates were all skipped.

    Attributes:
      state: the state after them: parameters of the last good step.
      first: the first of these steps.
      last: the last one.
    """

    state: TrainState
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class Observers:
    """What watches a run without changing it."""

    goodput: Goodput
    watchdog: Watchdog
    profile: Profile
    peers: Peers | None = None
    spikes: SpikeReports | None = None
    limit: TimeLimit | None = None


@dataclasses.dataclass
class Attempt:
    """The moving parts of an attempt, after the setup of `loop.run`.

    Attributes:
      done_before: step up to which an earlier attempt or process had come.
    """

    settings: Settings
    step: Callable[[TrainState, Any, Frozen], Any]
    frozen: Frozen
    mesh: Mesh
    hooks: Sequence[Hook]
    checkpoints: Checkpoints
    writers: Writers
    signals: StopSignals
    batch_size: int
    observers: Observers
    skips: Skips
    done_before: int = 0
    longest_step: float = 0.0
    longest_save: float = 0.0
    longest_hook: float = 0.0
    measured: set[str] = dataclasses.field(default_factory=set)

    def go(self, state: TrainState, start: int, iterator: Iterator[Any]) -> TrainState | Diverged:
        """Train from the state after `start` steps.

        Raises:
          Stopped: a signal or the time limit stopped the run.
        """
        self._in_flight: collections.deque[tuple[int, Any, Any]] = collections.deque()
        steps, means, clock = self.settings.steps, RunningMean(), _Clock()
        # Collectives of several steps at once can starve the CPU's only thread pool, and there is nothing to hide.
        allowed = 0 if self.mesh.devices.flat[0].platform == "cpu" else IN_FLIGHT
        hidden = None if jax.process_index() == 0 else True  # None: shown on a terminal only
        with tqdm(
            total=steps, initial=start, disable=hidden, file=sys.stderr, unit="step", smoothing=0.05
        ) as bar:
            for step in range(start + 1, steps + 1):
                began, lost = time.monotonic(), self.observers.goodput.lost
                batch = self._next(step, state, iterator)
                self.observers.profile.before(step)
                with self.observers.profile.marked(step):
                    state, metrics = self.step(state, global_batch(batch, self.mesh), self.frozen)
                self.observers.profile.after(step, metrics)
                means.add(metrics)
                self._in_flight.append((step, metrics["loss"], metrics["skipped"]))
                self._land(allowed)
                bar.update()
                report = step % self.settings.log_every == 0 or step == steps
                if report or self._is_due(step):
                    self._land(0)
                if self.skips.diverged:
                    return Diverged(state, self.skips.first, self.skips.last)
                self._time(step, time.monotonic() - began - (self.observers.goodput.lost - lost))
                if report:
                    self._report(step, means, clock, bar)
                with clock.paused():
                    self._after(step, state)
                self.observers.watchdog.progress(step)
        self._warn_of_the_best()
        return state

    def _next(self, step: int, state: TrainState, iterator: Iterator[Any]) -> Any:
        """The next batch. If the data fail, the state so far is saved first."""
        began = time.monotonic()
        try:
            batch = next(iterator)
        except Exception:
            self._save_before_failing(step - 1, state)
            raise
        waited = time.monotonic() - began
        if all(loss.is_ready() for _, loss, _ in self._in_flight):  # else the devices were at work meanwhile
            self.observers.goodput.add("data", waited)
        if self.observers.peers is not None:
            self.observers.peers.report(step, waited)
        return batch

    def _save_before_failing(self, step: int, state: TrainState) -> None:
        """Save the state of a step after which there are no data; in a run of one process, since all have to save."""
        if jax.process_count() > 1 or step == 0:
            return
        self._land(0)
        self._save(step, state, last=False)
        self._wait()

    def _wait(self) -> None:
        """Wait for the save on its way; its failure is not the one that ends the run."""
        try:
            self.checkpoints.wait()
        except RunFailure as error:
            _log.warning("%s", error)

    def _land(self, allowed: int) -> None:
        """Wait until at most `allowed` steps are in flight. Losses of finished steps are examined.

        Steps after divergence are not looked at, so that its end is the same however many are in flight.
        """
        while len(self._in_flight) > allowed and not self.skips.diverged:
            step, loss, skipped = self._in_flight.popleft()
            loss, skipped = (float(value) for value in jax.device_get((loss, skipped)))
            self.skips.add(step, bool(skipped))
            if self.observers.spikes is not None:
                self.observers.spikes.add(step, loss)

    def _time(self, step: int, seconds: float) -> None:
        """Count a step that an earlier attempt had done as lost time."""
        self.longest_step = max(seconds, 0.9 * self.longest_step)
        if step <= self.done_before:
            self.observers.goodput.add("restart", seconds)

    def _is_due(self, step: int) -> bool:
        """Whether the state of this step is used, so that it must be known whether its updates were skipped."""
        every = (self.settings.checkpoint_every, *(hook.every for hook in self.hooks))
        return any(step % interval == 0 for interval in every)

    def _after(self, step: int, state: TrainState) -> None:
        """Save, stop, and call hooks, where they are due."""
        last, stop, cause = step == self.settings.steps, self.signals.caught(step), ""
        if not stop and not last and self._is_late(step):
            if jax.process_count() > 1:
                self.signals.stop_all()
            else:
                stop, cause = True, LIMIT
        if step % self.settings.checkpoint_every == 0 or last or stop:
            self._land(0)
            self._save(step, state, last=last or bool(stop), at_end=last)
        self._call_hooks(step, state, [hook for hook in self.hooks if hook.quick or not stop])
        if stop:
            raise Stopped(int(stop) if not cause else 0, step, self.checkpoints.latest(), cause)

    def _call_hooks(self, step: int, state: TrainState, hooks: Sequence[Hook]) -> None:
        """Call the hooks that are due at this step."""
        for hook in hooks:
            if step % hook.every == 0 or step == self.settings.steps:
                began = time.monotonic()
                with self.observers.goodput.spent("evaluate"), self.observers.watchdog.paused():
                    values = self._values(hook, state, step)
                self.longest_hook = max(self.longest_hook, time.monotonic() - began)
                self.writers.write(step, values)
                self._rate(step, state, values)

    def _is_late(self, step: int) -> bool:
        """Whether the time limit leaves no room for what follows: the hooks that are due, another step, and a save."""
        limit, due = self.observers.limit, sum(step % hook.every == 0 for hook in self.hooks)
        ahead = self.longest_step + due * self.longest_hook
        return limit is not None and limit.reached(ahead, self.longest_save)

    def _values(self, hook: Hook, state: TrainState, step: int) -> Mapping[str, Any]:
        """What a hook returns. One that fails costs its output only."""
        try:
            return hook.call(state, step) or {}
        except UserError as error:
            _log.warning("step %d: %s; training goes on", step, error)
            return {}

    def _rate(self, step: int, state: TrainState, values: Mapping[str, Any]) -> None:
        """Keep a checkpoint of this step if its evaluation is among the best."""
        self.measured |= {each for each, value in values.items() if np.ndim(value) == 0}
        name = self.settings.keep_also.best if self.settings.keep_also else None
        if name is not None and name in values:
            value = float(values[name])
            if math.isfinite(value) and self.checkpoints.would_stay(step, value):
                self._save(step, state, last=False)
                self.checkpoints.rate(step, value)

    def _warn_of_the_best(self) -> None:
        """Log a warning if no number of the name of `Retention.best` was measured: no checkpoint was kept for it."""
        name = self.settings.keep_also.best if self.settings.keep_also else None
        if name is not None and self.measured and name not in self.measured:
            listed = ", ".join(sorted(self.measured))
            _log.warning("keep_also.best=%r: no number of this name was measured, but %s", name, listed)

    def _report(self, step: int, means: RunningMean, clock: "_Clock", bar: Any) -> None:
        window = means.steps
        values = means.take()  # waits for the device, so the clock is read after it
        values["images_per_second"] = window * self.batch_size / clock.restart()
        self.writers.write(step, {**values, **self.observers.goodput.scalars()})
        bar.set_postfix({"loss": f"{values['loss']:.4g}", "images/s": f"{values['images_per_second']:.4g}"})
        if self.observers.peers is not None:
            self.observers.peers.report_stragglers()

    def _save(self, step: int, state: TrainState, last: bool, at_end: bool = False) -> None:
        """Save, unless updates are being skipped. A failure is an error at the end, and costs one checkpoint before."""
        if self.skips.in_a_row and not at_end:
            text = "step %d: not saved, since the last %d updates were skipped"
            _log.warning(text, step, self.skips.in_a_row)
            if last:
                self._wait()  # an earlier save may still be on its way
            return
        began = time.monotonic()
        with self.observers.goodput.spent("save"), self.observers.watchdog.paused():
            self._save_now(step, state, last)
        self.longest_save = max(self.longest_save, time.monotonic() - began)

    def _save_now(self, step: int, state: TrainState, last: bool) -> None:
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
