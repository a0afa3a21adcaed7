"""Skipped updates of a run: counted, reported, and the end of a run in which they do not cease."""

import logging

_log = logging.getLogger(__name__)

REPORTED = 10
"""Skipped updates that are reported one by one; of later ones each hundredth is."""


class Skips:
    """Counts of skipped updates.

    Args:
      most: consecutive ones after which the run has diverged.

    Attributes:
      in_a_row: skipped updates up to the last step; 0 after a good one.
      first: the first step of these.
    """

    def __init__(self, most: int):
        self._most, self._total = most, 0
        self.in_a_row, self.first = 0, 0

    def add(self, step: int, skipped: bool) -> None:
        if not skipped:
            self.in_a_row = 0
            return
        self.first = self.first if self.in_a_row else step
        self.in_a_row += 1
        self._total += 1
        if self._total <= REPORTED or self._total % 100 == 0:
            text = (
                "step %d: the update was skipped, since it was not finite or its loss was a spike (%d so far)"
            )
            _log.warning(text, step, self._total)

    @property
    def last(self) -> int:
        """The last of the consecutive steps."""
        return self.first + self.in_a_row - 1

    @property
    def diverged(self) -> bool:
        return self.in_a_row >= self._most
