"""Retention: which checkpoints of a run stay on disk."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

from etils import epath

from jaxdiff.errors import expect, positive
from jaxdiff.training import integrity

VALUE_FILE = "metric.json"
"""File of a checkpoint with the metric of `Retention.best`, written after the checkpoint."""


class Saved(NamedTuple):
    """A checkpoint on disk.

    Attributes:
      step: of its state.
      time: when it was saved, in seconds since 1970.
      value: of the metric that `Retention.best` names; None if it was not measured.
    """

    step: int
    time: float
    value: float | None = None


@dataclasses.dataclass(frozen=True)
class Retention:
    """Checkpoints that stay in addition to the latest ones (`Experiment.keep`).

    Attributes:
      every_steps: every step that is a multiple of this stays for good.
      every_minutes: a checkpoint stays for good if the last such one was saved at least as long before.
      best: name of a number that is measured during training, as ``metrics.jsonl`` has it:
        ``evaluation/guidance_1.5/recall`` or ``held_out_loss``. The checkpoints with its best values stay.
      best_count: number of these.
      better: whether lower or higher values are better.
    """

    every_steps: int | None = None
    every_minutes: float | int | None = None
    best: str | None = None
    best_count: int = 1
    better: Literal["lower", "higher"] = "lower"

    def __post_init__(self):
        positive(self, "every_steps", "every_minutes", "best_count")
        fix = "name a number of the log, or None"
        expect(self.best != "", "best", self.best, "the name of a metric", fix)

    def kept(self, saved: Sequence[Saved]) -> set[int]:
        """The steps that stay, of checkpoints in order."""
        return {*self._multiples(saved), *self._regular(saved), *(each.step for each in self.ranked(saved))}

    def ranked(self, saved: Sequence[Saved]) -> list[Saved]:
        """The `best_count` best checkpoints with a value, best first; of equal ones the earlier."""
        sign = 1 if self.better == "lower" else -1
        rated = [(sign * each.value, each.step, each) for each in saved if each.value is not None]
        return [each for _, _, each in sorted(rated)[: self.best_count]] if self.best else []

    def read(self, folder: epath.Path, step: int) -> Saved:
        """A checkpoint on disk; its value is None if that of another metric is stored."""
        try:
            record = integrity.read_manifest(folder)
            file = folder / VALUE_FILE
            values = json.loads(file.read_text()) if file.exists() else {}
            value = float(values[self.best]) if self.best in values else None
        except (integrity.Damaged, OSError, ValueError, TypeError):
            record, value = None, None
        return Saved(step, record["time"] if record else folder.stat().mtime, value)

    def write(self, folder: epath.Path, value: float) -> None:
        """Store the value of `best` in a complete checkpoint."""
        draft = folder / f".{VALUE_FILE}"
        draft.write_text(json.dumps({self.best: value}) + "\n")
        draft.replace(folder / VALUE_FILE)

    def _multiples(self, saved: Sequence[Saved]) -> list[int]:
        return [each.step for each in saved if self.every_steps and each.step % self.every_steps == 0]

    def _regular(self, saved: Sequence[Saved]) -> list[int]:
        found: list[Saved] = []
        for each in saved if self.every_minutes else ():
            if not found or each.time - found[-1].time >= 60 * (self.every_minutes or 0):
                found.append(each)
        return [each.step for each in found]


def rated(directory: epath.Path, retention: Retention) -> list[Saved]:
    """The complete checkpoints in a directory, in order, with the values of a metric."""
    if not directory.exists():
        return []
    folders = {int(path.name): path for path in directory.iterdir() if path.name.isdecimal()}
    return [
        retention.read(folders[step], step)
        for step in sorted(folders)
        if integrity.is_complete(folders[step])
    ]
