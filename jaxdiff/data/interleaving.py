"""Interleaving: several sequences as one, in which each is spread evenly."""

import itertools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np


def locate(index: int, counts: Sequence[int], phases: Sequence[float] = ()) -> tuple[int, int]:
    """The sequence that has an item at `index` of the whole, and the number of its items before.

    The first sequence is spread evenly over all positions, the second over the remaining ones, and so on. Grain's own
    mixture does the same, but rounds weights to hundredths of the smallest, which would skip some items.

    Args:
      index: position in the whole, 0-based.
      counts: number of items of each sequence.
      phases: how far each sequence is moved towards the begin, in [0, 1) of the distance between two of its items; 0
        for all if empty.
    """
    left = sum(counts)
    for origin, (count, phase) in enumerate(zip(counts, phases or itertools.repeat(0.0), strict=False)):
        ahead = int(phase * left)
        before = (index * count + ahead) // left
        if ((index + 1) * count + ahead) // left > before:
            return origin, before
        index, left = index - before, left - count
    raise IndexError(index)


class Interleaved:
    """Endless data sets in turn, each as often as it has examples. The order is a pure function of the seed and index.

    Args:
      datasets: each with an endless sequence of batches.
      counts: number of examples of each.
      seed: of the phases with which they begin, so that rare data sets do not all come late.
    """

    def __init__(self, datasets: Sequence[Any], counts: Sequence[int], seed: int):
        self._datasets, self._counts = datasets, counts
        self._phases = np.random.default_rng(seed).random(len(counts)).tolist()

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Any:
        period, within = divmod(index, sum(self._counts))
        origin, position = locate(within, self._counts, self._phases)
        return self._datasets[origin][period * self._counts[origin] + position]
