"""What a run reports, and where: the console, ``metrics.jsonl`` and TensorBoard, all written by process 0."""

import json
import math
import os
import sys
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
"""Pictures by name, uint8 [height, width, channels]."""


@jax.jit
def _add(totals: Metrics, metrics: Metrics) -> Metrics:
    used = metrics["skipped"] == 0
    added = {name: jnp.where(used, value, 0.0) for name, value in metrics.items()} | {
        "skipped": metrics["skipped"]
    }
    return jax.tree.map(jnp.add, totals, added)


class RunningMean:
    """Means over a window of steps. They add up on the device, and reach the host only when asked for."""

    def __init__(self):
        self._totals: Metrics | None = None
        self.steps = 0

    def add(self, metrics: Metrics) -> None:
        """Count the metrics of one step, among them `skipped` (0 or 1)."""
        totals = jax.tree.map(jnp.zeros_like, metrics) if self._totals is None else self._totals
        self._totals = _add(totals, metrics)
        self.steps += 1

    def take(self) -> dict[str, float]:
        """The means over the steps whose update was made (NaN if none was), and the number of the skipped.

        Begins a new window.
        """
        assert self._totals is not None
        totals = {name: float(value) for name, value in jax.device_get(self._totals).items()}
        used = self.steps - round(totals["skipped"])
        means = {name: total / used if used else math.nan for name, total in totals.items()}
        means = {"loss": means.pop("loss"), **means}  # what one looks at first
        self.__init__()
        return means | {"skipped": totals["skipped"]}


@runtime_checkable
class Writer(Protocol):
    """Takes what there is to say about a step."""

    def write(self, step: int, scalars: Mapping[str, float], images: Images) -> None: ...

    def close(self) -> None: ...


class Console:
    """One line for each step that has scalars, above the progress bar if there is one."""

    def write(self, step: int, scalars: Mapping[str, float], images: Images) -> None:
        if scalars:
            words = " ".join(f"{name}={value:.5g}" for name, value in scalars.items())
            tqdm.write(f"step {step}: {words}", file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        pass


class JsonLines:
    """One JSON object a line. A resumed run goes on after its checkpoint: rows of later steps are dropped first."""

    def __init__(self, path: epath.Path, step: int):
        self._path = path
        rows = [row for row in path.read_text().splitlines() if _step(row) <= step] if path.exists() else []
        self._text = "".join(f"{row}\n" for row in rows)
        draft = path.parent / f"{path.name}.tmp"
        draft.write_text(self._text)
        draft.replace(path)
        # A bucket's files cannot be appended to: there the few rows are written anew each time.
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


class Pictures:
    """``<directory>/<name>/<step>.png`` for each image."""

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
    """Event files for TensorBoard. Events after the step at which a run resumes are marked as void."""

    def __init__(self, directory: epath.Path, step: int):
        from tensorboardX import SummaryWriter  # slow to import, and for process 0 only

        self._writer = SummaryWriter(str(directory), purge_step=step + 1, flush_secs=10)

    def write(self, step: int, scalars: Mapping[str, float], images: Images) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        for name, image in images.items():
            self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Writers:
    """All writers of a run. Scalars and images may come mixed, as hooks give them."""

    def __init__(self, *writers: Writer):
        self._writers = writers

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers are scalars, arrays of three axes (uint8, height x width x channels) are images."""
        images = {name: np.asarray(value) for name, value in values.items() if np.ndim(value) == 3}
        scalars = {name: float(value) for name, value in values.items() if name not in images}
        for writer in self._writers:
            writer.write(step, scalars, images)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def open_writers(workdir: epath.PathLike, step: int) -> Writers:
    """The writers of a run that starts after `step`; none in any process but the first."""
    if jax.process_index() != 0:
        return Writers()
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    jsonl, board = JsonLines(workdir / "metrics.jsonl", step), TensorBoard(workdir / "tensorboard", step)
    return Writers(Console(), jsonl, board, Pictures(workdir))


def _step(row: str) -> int | float:
    """The step of a row; infinity if a kill has cut the row short."""
    try:
        return json.loads(row)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf
