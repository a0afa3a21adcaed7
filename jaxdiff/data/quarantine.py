"""Quarantine of damaged examples: each is named and counted, and another one takes its place in training.

The example in its place is the next intact one in stored order. So batches remain a pure function of the seed and the
step, for any number of processes.
"""

import errno
import logging
import random
import threading
import time
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxdiff.data.sources import Example
from jaxdiff.errors import UserError, reason

OF_A_FILE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
)
"""Errors of the system that say something about one file. All others are of the disk, the network or the process."""

PAUSES = (0.2, 1.0, 5.0)
"""Seconds between attempts to read after such an error, with up to half of them added at random."""

_log = logging.getLogger(__name__)


@runtime_checkable
class Located(Protocol):
    """Opened examples that say where each of them lies."""

    def name_of(self, index: int) -> str:
        """The file of an example, for errors."""
        ...


class _Damaged(Exception):
    """An example that cannot be used; the text says which one, and why."""


class Quarantined:
    """Examples without the damaged ones.

    An example is damaged if it cannot be read, if an image has another shape than the data set states, or if a number
    is NaN or infinite. Errors of disks, networks and the process are tried again a few times, and then raised as they
    are.

    Args:
      examples: the examples.
      most: fraction of damaged ones above which reading is an error.
      share: fraction of the examples that this process reads.

    Attributes:
      damaged: positions of the damaged examples so far.
    """

    def __init__(self, examples: Any, most: float, share: float = 1.0):
        self._examples, self._most = examples, most
        self.image_shape, self.num_classes = examples.image_shape, examples.num_classes
        self._limit = most * len(examples) * share
        self.damaged: set[int] = set()
        self._lock = threading.Lock()  # guards `damaged`: threads of a pipeline share it

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        """The example at `index`, or the next intact one.

        Raises:
          UserError: there are more damaged examples than allowed, or the only example is damaged.
        """
        for step in range(len(self)):
            position = (index + step) % len(self)
            try:
                return self._intact(position)
            except _Damaged as damage:
                self._count(position, str(damage))
        raise UserError("source: expected an intact example, got none. Fix: check the data")

    def __repr__(self) -> str:
        return repr(self._examples)

    def _intact(self, index: int) -> Example:
        try:
            example = self._read(index)
        except UserError as error:
            raise _Damaged(str(error).partition(". Fix:")[0]) from None
        except OSError as error:
            if not is_of_a_file(error):
                raise
            raise _Damaged(f"{self._name(index)}: expected a readable example, got {reason(error)}") from None
        except (MemoryError, AssertionError):
            raise
        except Exception as error:  # libraries of records and images have no common class for damaged bytes
            raise _Damaged(
                f"{self._name(index)}: expected a readable example, got {reason(error)}"
            ) from error
        self._check(index, example)
        return example

    def _read(self, index: int) -> Example:
        for pause in PAUSES:
            try:
                return self._examples[index]
            except OSError as error:
                if is_of_a_file(error):
                    raise
                _log.warning("%s: %s; trying again", self._name(index), reason(error))
            time.sleep(pause * random.uniform(1.0, 1.5))
        return self._examples[index]

    def _check(self, index: int, example: Example) -> None:
        shape = getattr(example.get("image"), "shape", None)
        if shape is not None and self.image_shape is not None and not _fits(shape, self.image_shape):
            raise _Damaged(f"{self._name(index)}: expected an image of shape {self.image_shape}, got {shape}")
        for name, value in example.items():
            if isinstance(value, np.ndarray | np.floating) and np.issubdtype(value.dtype, np.floating):
                bad = np.size(value) - np.count_nonzero(np.isfinite(value))
                if bad:
                    raise _Damaged(
                        f"{self._name(index)}: expected finite numbers in {name}, got {bad} that are not"
                    )

    def _name(self, index: int) -> str:
        return self._examples.name_of(index) if isinstance(self._examples, Located) else f"example {index}"

    def _count(self, index: int, why: str) -> None:
        with self._lock:
            if index in self.damaged:
                return
            self.damaged.add(index)
            count = len(self.damaged)
        if count > self._limit:
            raise UserError(
                f"max_damaged={self._most}: expected a smaller fraction of damaged examples, got {count} of "
                f"{len(self)}, the last one: {why}. Fix: replace them, or raise the limit"
            )
        _log.warning("%s; another example takes its place (%d of at most %d)", why, count, self._limit)


def is_of_a_file(error: OSError) -> bool:
    """Whether an error is due to one file. Decoders raise errors without a number for its content."""
    if isinstance(error, TimeoutError | ConnectionError):
        return False
    return error.errno is None or error.errno in OF_A_FILE


def _fits(shape: tuple[int, ...], declared: tuple[int | None, ...]) -> bool:
    return len(shape) == len(declared) and all(
        want in (None, got) for got, want in zip(shape, declared, strict=True)
    )
