"""Writers of a run's log: console, ``metrics.jsonl``, TensorBoard and PNG files.

Files are written on a thread of their own, with a bounded queue. So a full, slow or lost disk never stops training.
"""

import collections
import contextlib
import json
import logging
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from jaxdiff.data.images import save_png
from jaxdiff.errors import reason
from jaxdiff.training import logged
from jaxdiff.training.goodput import GOODPUT, PREFIX

Images = Mapping[str, np.ndarray]
"""Images by name, uint8 [height, width, channels]."""

WAITING = 256
"""Entries that may wait for the disk; later ones are dropped."""

PATIENCE = 10.0
"""Seconds that a checkpoint, or the end of a run, waits for the log."""

_log = logging.getLogger(__name__)


@runtime_checkable
class Writer(Protocol):
    """Writes the scalars and images of a step. It may raise; a later step is then written all the same."""

    def write(self, step: int, scalars: Mapping[str, float], images: Images) -> None: ...

    def close(self) -> None: ...


class Console:
    """Standard output: one aligned line per step with scalars, above the progress bar if there is one.

    Args:
      start: step at which the run starts.
      steps: last step of the run; None if unknown.
    """

    def __init__(self, start: int = 0, steps: int | None = None):
        self._start, self._steps, self._began = start, steps, time.monotonic()

    def write(self, step: int, scalars: Mapping[str, float], images: Images) -> None:
        if scalars:
            columns = [f"{LABELS.get(name, name)} {_figures(value):<8}" for name, value in _ordered(scalars)]
            tqdm.write(
                f"{self._position(step)}: {'  '.join(columns)}{self._left(step)}".rstrip(), file=sys.stdout
            )
            sys.stdout.flush()

    def close(self) -> None:
        pass

    def _position(self, step: int) -> str:
        return (
            f"step {step}" if self._steps is None else f"step {step:>{len(str(self._steps))}}/{self._steps}"
        )

    def _left(self, step: int) -> str:
        """Remaining time, from the mean time of a step so far; includes checkpoints and hooks."""
        if self._steps is None or not self._start < step < self._steps:
            return ""
        seconds = (time.monotonic() - self._began) / (step - self._start) * (self._steps - step)
        return f"  {tqdm.format_interval(seconds)} left"


LABELS = {"images_per_second": "images/s"}
"""Names of scalars on the console, where they differ."""


def _ordered(scalars: Mapping[str, float]) -> list[tuple[str, float]]:
    """Loss and speed first, then the others; `skipped` last, and only if steps were skipped. No goodput."""
    ends = {"loss": 0, "images_per_second": 1, "skipped": 3}
    shown = [
        (name, value)
        for name, value in scalars.items()
        if (name != "skipped" or value) and not name.startswith((PREFIX, GOODPUT))
    ]
    return sorted(shown, key=lambda pair: ends.get(pair[0], 2))


def _figures(value: float) -> str:
    """Four significant figures, with trailing zeros for alignment; whole numbers without a point."""
    return f"{value:.0f}" if float(value).is_integer() or 1e3 <= abs(value) < 1e7 else f"{value:#.4g}"


class JsonLines:
    """JSON Lines file, one object per step. A resumed run first removes the rows after its checkpoint.

    Rows that cannot be written are kept, and written before the next one. A row is appended; only in a bucket, where
    nothing can be appended to a file, all rows are written again.
    """

    def __init__(self, path: epath.PathLike, step: int):
        path = self._path = epath.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = path.read_bytes() if path.exists() else None
        rows = (stored or b"").decode(errors="replace").splitlines()
        kept = "".join(f"{row}\n" for row in rows if logged.step_of(row) <= step).encode()
        if kept != stored:
            draft = path.parent / f"{path.name}.tmp"
            draft.write_bytes(kept)
            draft.replace(path)
        self._waiting, self._length = b"", len(kept)
        self._in_bucket = kept if "://" in str(path) else None

    def write(self, step: int, scalars: Mapping[str, float], images: Images) -> None:
        if not scalars:
            return
        values = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._waiting += (json.dumps({"step": step, **values}) + "\n").encode()
        if self._in_bucket is None:
            self._append()
        else:
            self._path.write_bytes(self._in_bucket + self._waiting)
            self._in_bucket += self._waiting
        self._waiting = b""

    def _append(self) -> None:
        with open(self._path, "ab") as file:
            # Half a row is removed, if the disk was full. A file that was moved meanwhile begins anew.
            length = min(self._length, file.tell())
            file.truncate(length)
            file.write(self._waiting)
        self._length = length + len(self._waiting)

    def close(self) -> None:
        pass


class PngFiles:
    """PNG files, ``<directory>/<name>/<step>.png`` for each image."""

    def __init__(self, directory: epath.PathLike):
        self._directory = epath.Path(directory)

    def write(self, step: int, scalars: Mapping[str, float], images: Images) -> None:
        for name, image in images.items():
            folder = self._directory / name
            folder.mkdir(parents=True, exist_ok=True)
            save_png(folder / f"{step:08}.png", image)

    def close(self) -> None:
        pass


class TensorBoard:
    """TensorBoard event files. Events after the step at which a run resumes are marked as void.

    After an error a new file is begun, since TensorBoard reads none beyond a damaged event.
    """

    def __init__(self, directory: epath.PathLike, step: int):
        import tensorboardX  # noqa: F401  slow: rather now, in the background, than at the first row

        self._directory, self._start, self._files = epath.Path(directory), step, 0
        self._writer: Any = None

    def write(self, step: int, scalars: Mapping[str, float], images: Images) -> None:
        from tensorboardX import summary

        found = [summary.scalar(name, value) for name, value in scalars.items()]
        found += [summary.image(name, image, dataformats="HWC") for name, image in images.items()]
        try:
            writer = self._writer or self._begin()
            for each in found:
                self._write(step, summary=each)
            writer.flush()
        except Exception:
            self._abandon()
            raise

    def _begin(self) -> Any:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._directory.mkdir(parents=True, exist_ok=True)
        # Several files may begin within a second, of which the name tells only the second.
        suffix = f".{os.getpid()}.{self._files}"
        self._writer = EventsWriter(str(self._directory / "events"), suffix)
        self._files += 1
        if self._files == 1:
            self._write(self._start + 1, session_log=SessionLog(status=SessionLog.START))
        return self._writer

    def _abandon(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(step=step, wall_time=time.time(), **content))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


Entry = tuple[int, Mapping[str, float], Images]


class Background:
    """Writers on a thread of their own. Their errors are logged once each, until they succeed again.

    Args:
      opened: functions that open the writers, by name. One that fails is called again with the next entry.
    """

    def __init__(self, opened: Mapping[str, Callable[[], Writer]]):
        self._open = opened
        self._writers: dict[str, Writer] = {}
        self._failing: collections.Counter[str] = collections.Counter()
        self._queue: queue.Queue[Entry | threading.Event | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def write(self, step: int, scalars: Mapping[str, float], images: Images) -> None:
        try:
            self._queue.put_nowait((step, scalars, images))
        except queue.Full:
            self._failed("the log", "the disk does not answer")
        else:
            self._failing.pop("the log", None)

    def drain(self, seconds: float = PATIENCE) -> bool:
        """Wait until everything is written, at most so long; returns whether it is."""
        done = threading.Event()
        try:
            self._queue.put(done, timeout=seconds)
        except queue.Full:
            return False
        return done.wait(seconds)

    def close(self) -> None:
        if self.drain():
            self._queue.put(None)
            self._thread.join(PATIENCE)

    def _work(self) -> None:
        for name in self._open:
            self._try(name, lambda writer: None)
        while (entry := self._queue.get()) is not None:
            if isinstance(entry, threading.Event):
                entry.set()
                continue
            for name in self._open:
                self._try(name, lambda writer, entry=entry: writer.write(*entry))
        for name in self._writers:
            self._try(name, lambda writer: writer.close())

    def _try(self, name: str, action: Callable[[Writer], None]) -> None:
        try:
            if name not in self._writers:
                self._writers[name] = self._open[name]()
            action(self._writers[name])
            self._failing.pop(name, None)
        except Exception as error:
            self._failed(name, reason(error))

    def _failed(self, name: str, why: str) -> None:
        self._failing[name] += 1
        if self._failing[name] == 1:
            _log.warning("%s could not be written (%s); training goes on", name, why)


class Writers:
    """All writers of a run; separates the scalars and images that hooks return.

    Args:
      console: written at once.
      files: written in the background.
    """

    def __init__(self, console: Console | None = None, files: Background | None = None):
        self._console, self._files = console, files

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write numbers as scalars, and arrays uint8 [height, width, channels] as images."""
        images = {name: np.asarray(value) for name, value in values.items() if np.ndim(value) == 3}
        scalars = {name: float(value) for name, value in values.items() if name not in images}
        if self._console is not None:
            self._console.write(step, scalars, images)
        if self._files is not None:
            self._files.write(step, scalars, images)

    def drain(self) -> None:
        """Wait for the disk, so that a checkpoint is never newer than the log."""
        if self._files is not None:
            self._files.drain()

    def close(self) -> None:
        if self._files is not None:
            self._files.close()


def open_writers(
    workdir: epath.PathLike, step: int, steps: int | None = None, *, console: bool = True
) -> Writers:
    """The writers of a run, in process 0; other processes write nothing.

    Args:
      workdir: folder of the run.
      step: step after which the run starts.
      steps: last step of the run, for the console; None if unknown.
      console: whether numbers are printed, too.
    """
    if jax.process_index() != 0:
        return Writers()
    workdir = epath.Path(workdir)
    files = {
        "metrics.jsonl": lambda: JsonLines(workdir / "metrics.jsonl", step),
        "tensorboard": lambda: TensorBoard(workdir / "tensorboard", step),
        "images": lambda: PngFiles(workdir),
    }
    return Writers(Console(step, steps) if console else None, Background(files))
