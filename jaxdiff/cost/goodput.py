"""Goodput: the fraction of a run's time that trains steps which stay, by checkpoint interval and rate of failures.

The simulation follows `jaxdiff.training.loop`. A save stops the loop while the state is copied, and is written in the
background. It counts once it is complete, and the next save waits for it. A failure ends the run at once, also while
it starts. The same command then continues from the newest complete checkpoint. `Retention` does not change this: an
old checkpoint is deleted only after its successor is complete. No heavy imports.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.errors import between, expect, positive

HOUR = 3600.0

PUBLISHED = ((1024, 7.9 * HOUR), (16_384, 1.8 * HOUR), (131_072, 14 * 60.0))
"""Accelerators of one run -> its mean time between failures, seconds.

Kokolis et al. 2024, "Revisiting Reliability in Large-Scale Machine Learning Research Clusters" (arXiv:2410.21680):
measured at 1,024 A100 GPUs, and their projection for more.
"""

FAILURES = 1000
"""Simulated failures of an interval. Goodput then has a standard error of a few per cent of what is missing to 1."""


@dataclasses.dataclass(frozen=True)
class Times:
    """What a run takes, as measured, all in seconds.

    Attributes:
      step: a training step.
      save: how long a save stops the loop.
      write: how long it is then written in the background until it is complete.
      restore: to read and verify a checkpoint.
      start: from a failure to the begin of the restore, and from its end to the first step: new machines, data,
        compilation.
    """

    step: float
    save: float
    write: float
    restore: float
    start: float

    def __post_init__(self):
        positive(self, "step", "save")
        for name in ("write", "restore", "start"):
            between(self, name, 0, math.inf)

    @property
    def restart(self) -> float:
        """From a failure to the first step."""
        return self.start + self.restore


class Spent(NamedTuple):
    """Fractions of the time of a run, which add up to 1.

    Attributes:
      goodput: steps that stay.
      lost: steps that are trained again, because no complete checkpoint has them.
      saving: the loop waits for a save.
      restarting: from failures to first steps.
    """

    goodput: float
    lost: float
    saving: float
    restarting: float


class Row(NamedTuple):
    """Goodput of one interval: `checkpoint_every` in steps, simulated, and by the closed form."""

    checkpoint_every: int
    simulated: Spent
    expected: float


def published_mtbf(accelerators: int) -> float:
    """Mean time between failures of a run, seconds: `PUBLISHED`, interpolated in logarithms.

    Outside of the published sizes, failures are proportional to the number of accelerators.
    """
    expect(accelerators >= 1, "--devices", accelerators, "a number >= 1", "give at least 1")
    sizes, times = (np.array(each, float) for each in zip(*PUBLISHED, strict=True))
    nearest = float(np.clip(accelerators, sizes[0], sizes[-1]))
    inside = math.exp(np.interp(math.log(nearest), np.log(sizes), np.log(times)))
    return inside * nearest / accelerators


def failures(mtbf: float, count: int = FAILURES, seed: int = 0) -> np.ndarray:
    """Times between failures, seconds [count]: exponential, as those of many independent parts are."""
    return np.random.default_rng(seed).exponential(mtbf, count)


def simulate(times: Times, checkpoint_every: int, gaps: Iterable[float]) -> Spent:
    """Discrete-event simulation of an endless run from failure to failure.

    Args:
      times: of the run.
      checkpoint_every: steps between saves.
      gaps: times between failures, seconds, as `failures` draws them.
    """
    expect(
        checkpoint_every >= 1, "checkpoint_every", checkpoint_every, "at least 1", "give a number of steps"
    )
    spent: dict[str, float] = collections.defaultdict(float)
    for gap in gaps:
        _add_attempt(spent, times, checkpoint_every * times.step, float(gap))
    kept, lost = spent["kept"], spent["training"] - spent["kept"]
    total = sum(spent.values()) - kept  # which is a part of the training
    return Spent(kept / total, lost / total, spent["saving"] / total, spent["restarting"] / total)


def _add_attempt(spent: dict[str, float], times: Times, train: float, gap: float) -> None:
    """Add the seconds of one attempt, which a failure ends after `gap`: each kind, and those of steps that stay."""
    clock = 0.0
    for kind, end, complete in _events(times, train):
        spent[kind] += min(end, gap) - clock
        if complete <= gap:
            spent["kept"] += train
        if end >= gap:
            return
        clock = end


def _events(times: Times, train: float) -> Iterator[tuple[str, float, float]]:
    """An attempt without a failure: what takes place, until when, and when the save that it begins is complete."""
    clock = complete = times.restart
    yield "restarting", clock, math.inf
    while True:
        clock += train
        yield "training", clock, math.inf
        clock = max(clock, complete) + times.save
        complete = clock + times.write
        yield "saving", clock, complete


def expected_goodput(times: Times, checkpoint_every: int, mtbf: float) -> float:
    """Goodput for exponential failures, exact by renewal theory.

    Saves of one attempt are complete at `d_j = restart + train + save + write + j period` after the failure before,
    with `period = max(train, write) + save`. A failure every `mtbf` seconds keeps `sum_j exp(-d_j / mtbf)` of them.
    Without background writes this is the formula of Daly 2006, "A higher order estimate of the optimum checkpoint
    interval for restart dumps".
    """
    train = checkpoint_every * times.step
    first = times.restart + train + times.save + times.write
    period = max(train, times.write) + times.save
    return train / mtbf * math.exp(-first / mtbf) / -math.expm1(-period / mtbf)


def young_daly(save: float, mtbf: float) -> float:
    """Seconds of training between saves, to first order the best: `sqrt(2 save mtbf)`.

    Young 1974, "A first order approximation to the optimum checkpoint interval".
    """
    return math.sqrt(2 * save * mtbf)


def compare(
    times: Times, mtbf: float, also: Sequence[int] = (), seed: int = 0, count: int = FAILURES
) -> list[Row]:
    """Goodput of intervals around `young_daly`, and of those of `also`, for the same failures; in order."""
    near = young_daly(times.save, mtbf) / times.step
    around = {max(1, round(near * 2 ** (power / 2))) for power in range(-6, 7)}
    gaps = failures(mtbf, count, seed)
    return [
        Row(every, simulate(times, every, gaps), expected_goodput(times, every, mtbf))
        for every in sorted(around | set(also))
    ]


def report(times: Times, mtbf: float, checkpoint_every: int, steps: int, seed: int = 0) -> dict[str, Any]:
    """What `jaxdiff.plan` prints about failures, as JSON values; docs/plan.md describes each.

    Args:
      times: of the run.
      mtbf: mean time between failures of the run, seconds.
      checkpoint_every: steps between saves in the config.
      steps: of the run.
      seed: of the failures.
    """
    rows = compare(times, mtbf, (checkpoint_every,), seed)
    best = max(rows, key=lambda row: row.simulated.goodput)
    goodput = best.simulated.goodput
    return {
        "mtbf_hours": mtbf / HOUR,
        "failures": FAILURES,
        "checkpoint_every": best.checkpoint_every,
        "goodput": goodput,
        "hours": steps * times.step / HOUR / goodput,
        "young_daly_steps": young_daly(times.save, mtbf) / times.step,
        "intervals": [
            {"checkpoint_every": row.checkpoint_every, **row.simulated._asdict(), "expected": row.expected}
            for row in rows
        ],
    }
