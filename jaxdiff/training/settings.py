"""What a run of the training loop is given: its length and intervals, its batches, and its hooks."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxdiff.training.retention import Retention
from jaxdiff.training.step import TrainState

Batches = Callable[[int], Iterator[Any]]
"""``batches(first_step)``: this process's rows of every batch from a step on, numpy arrays with a leading batch axis.

The batch of a step must be a pure function of the step, or a resumed run differs from an uninterrupted one.
"""


class Hook(NamedTuple):
    """A function of the state, called every `every` steps and after the last: draw samples, evaluate.

    `call(state, step)` may return scalars and images (uint8 [height, width, channels]) to log. It must not keep the
    state, whose memory the next step reuses. A `UserError` is logged, and training goes on. A run that stops calls only
    hooks that are `quick`.
    """

    every: int
    call: Callable[[TrainState, int], Mapping[str, Any] | None]
    quick: bool = False


@runtime_checkable
class Settings(Protocol):
    """Length of a run, and how often it reports and saves; an `Experiment` has all of these.

    Attributes:
      steps: optimizer steps in total.
      accumulation: micro-batches per step.
      log_every, checkpoint_every: in steps.
      keep: number of latest checkpoints to keep.
      keep_also: further checkpoints that stay.
      seed: of every random draw.
    """

    @property
    def steps(self) -> int: ...

    @property
    def accumulation(self) -> int: ...

    @property
    def log_every(self) -> int: ...

    @property
    def checkpoint_every(self) -> int: ...

    @property
    def keep(self) -> int: ...

    @property
    def keep_also(self) -> Retention | None: ...

    @property
    def seed(self) -> int: ...
