"""Fault tolerance of a run: when it rolls back, what counts as a spike of the loss, and when it hangs."""

import dataclasses

from jaxdiff.errors import between, positive


@dataclasses.dataclass(frozen=True)
class Spikes:
    """Spikes of the loss: values far above the recent ones, by the median and the median absolute deviation (MAD).

    A loss is a spike above ``median + deviations * 1.4826 * MAD`` of the last `window` finite losses. The factor makes
    the MAD the standard deviation of a normal distribution. A thousandth of the median replaces a smaller deviation.

    Attributes:
      window: number of losses that are compared; nothing is a spike before half of them are there.
      deviations: how far above the median a spike begins, in standard deviations.
    """

    window: int = 128
    deviations: float = 20.0

    def __post_init__(self):
        positive(self, "window", "deviations")


@dataclasses.dataclass(frozen=True)
class HangDetection:
    """Hang detection: without progress for this long, a run prints the stacks of its threads.

    Compilation, evaluation and saving do not count. Nothing is detected before the first step.

    Attributes:
      seconds: shortest time without a step.
      steps: the same, in median durations of recent steps; the longer of both counts.
    """

    seconds: float = 60.0
    steps: float = 20.0

    def __post_init__(self):
        positive(self, "seconds", "steps")


@dataclasses.dataclass(frozen=True)
class FaultTolerance:
    """Fault tolerance: what a run does about updates that are not finite, spikes of the loss, and hangs.

    Attributes:
      max_skipped: consecutive skipped updates after which the run goes back to its last checkpoint and passes over the
        batches since. If it happens again from there, the run stops.
      spikes: spikes to report; None for none.
      skip_spikes: the same for spikes to leave out of training, like updates that are not finite; None for none.
      hang: when a run hangs; None for no detection.
    """

    max_skipped: int = 5
    spikes: Spikes | None = Spikes()
    skip_spikes: Spikes | None = None
    hang: HangDetection | None = HangDetection()

    def __post_init__(self):
        between(self, "max_skipped", 1, float("inf"))

    @property
    def kept_losses(self) -> int:
        """Number of losses that the state of a run keeps, see `TrainState.recent_losses`."""
        return self.skip_spikes.window if self.skip_spikes else 0
