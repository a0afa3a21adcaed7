"""Metrics of a run: means over log windows, and writers to console, ``metrics.jsonl``, TensorBoard and PNG files."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from tqdm import tqdm

from jaxdiff.data.images import save_png
from jaxdiff.typing import Metrics

Images = Mapping[str, np.ndarray]
"""Images by name, uint8 [height, width, channels]."""


@jax.jit
def _add(totals: Metrics, metrics: Metrics) -> Metrics:
    used = metrics["skipped"] == 0
    added = {name: jnp.where(used, value, 0.0) for name, value in metrics.items()} | {
        "skipped": metrics["skipped"]
    }
    return jax.tree.map(jnp.add, totals, added)


class RunningMean:
    """Means over a window of steps, accumulated on the device until `take` copies them to the host.

    Attributes:
      steps: number of steps in the window.
    """

    def __init__(self):
        self._totals: Metrics | None = None
        self.steps = 0

    def add(self, metrics: Metrics) -> None:
        """Add the metrics of one step, which include `skipped` (0 or 1)."""
        totals = jax.tree.map(jnp.zeros_like, metrics) if self._totals is None else self._totals
        self._totals = _add(totals, metrics)
        self.steps += 1

    def take(self) -> dict[str, float]:
        """Means over the steps that were not skipped (NaN if all were), and the number of skipped steps.

        Starts a new window.
        """
        assert self._totals is not None
        totals = {name: float(value) for name, value in jax.device_get(self._totals).items()}
        used = self.steps - round(totals["skipped"])
        means = {name: total / used if used else math.nan for name, total in totals.items()}
        means = {"loss": means.pop("loss"), **means}  # the loss comes first in every output
        self.__init__()
        return means | {"skipped": totals["skipped"]}


@runtime_checkable
class Writer(Protocol):
    """Writes the scalars and images of a step."""

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
    """Loss and speed first, then the others; `skipped` last, and only if steps were skipped."""
    ends = {"loss": 0, "images_per_second": 1, "skipped": 3}
    shown = [(name, value) for name, value in scalars.items() if name != "skipped" or value]
    return sorted(shown, key=lambda pair: ends.get(pair[0], 2))


def _figures(value: float) -> str:
    """Four significant figures, with trailing zeros for alignment; whole numbers without a point."""
    return f"{value:.0f}" if float(value).is_integer() or 1e3 <= abs(value) < 1e7 else f"{value:#.4g}"


class JsonLines:
    """JSON Lines file, one object per step. A resumed run first removes the rows after its checkpoint."""

    def __init__(self, path: epath.Path, step: int):
        self._path = path
        rows = [row for row in path.read_text().splitlines() if _step(row) <= step] if path.exists() else []
        self._text = "".join(f"{row}\n" for row in rows)
        draft = path.parent / f"{path.name}.tmp"
        draft.write_text(self._text)
        draft.replace(path)
        # Files in a bucket cannot be appended to: there all rows are rewritten each time.
        self._file = path.open("a") if os.path.exists(path) else None

    def write(self, step: int, scalars: Mapping[str, float], images: Images) -> None:
        if not scalars:
            return
        values = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        row = json.dumps({"step": step, **values}) + "\n"
        if self._file is None:
            self._text += row
            self._path.write_text(self._text)
        else:
            self._file.write(row)
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class PngFiles:
    """PNG files, ``<directory>/<name>/<step>.png`` for each image."""

    def __init__(self, directory: epath.Path):
        self._directory = directory

    def write(self, step: int, scalars: Mapping[str, float], images: Images) -> None:
        for name, image in images.items():
            folder = self._directory / name
            folder.mkdir(parents=True, exist_ok=True)
            save_png(folder / f"{step:08}.png", image)

    def close(self) -> None:
        pass


class TensorBoard:
    """TensorBoard event files. Events after the step at which a run resumes are marked as void."""

    def __init__(self, directory: epath.Path, step: int):
        from tensorboardX import SummaryWriter  # slow to import, and only process 0 needs it

        self._writer = SummaryWriter(str(directory), purge_step=step + 1, flush_secs=10)

    def write(self, step: int, scalars: Mapping[str, float], images: Images) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        for name, image in images.items():
            self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Writers:
    """All writers of a run; separates the scalars and images that hooks return."""

    def __init__(self, *writers: Writer):
        self._writers = writers

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write numbers as scalars, and arrays uint8 [height, width, channels] as images."""
        images = {name: np.asarray(value) for name, value in values.items() if np.ndim(value) == 3}
        scalars = {name: float(value) for name, value in values.items() if name not in images}
        for writer in self._writers:
            writer.write(step, scalars, images)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def open_writers(workdir: epath.PathLike, step: int, steps: int | None = None) -> Writers:
    """The writers of a run, in process 0; other processes write nothing.

    Args:
      workdir: folder of the run.
      step: step after which the run starts.
      steps: last step of the run, for the console; None if unknown.
    """
    if jax.process_index() != 0:
        return Writers()
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    jsonl, board = JsonLines(workdir / "metrics.jsonl", step), TensorBoard(workdir / "tensorboard", step)
    return Writers(Console(step, steps), jsonl, board, PngFiles(workdir))


def _step(row: str) -> int | float:
    """The step of a row; infinity if the row is truncated because the process was killed."""
    try:
        return json.loads(row)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf
