"""What the first of several processes does for all of them: its errors reach every process, so that none waits."""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdiff.errors import RunFailure, UserError

LONGEST = 1 << 12
"""Bytes of an error's text that other processes receive."""

T = TypeVar("T")


def in_first(function: Callable[[], T], raises: type[Exception] = UserError) -> T | None:
    """Call a function in the first process. All processes wait for its end.

    Args:
      function: without collective operations.
      raises: the type of its error that other processes raise as well, with the same text.

    Returns:
      The result in the first process, None in the others.

    Raises:
      Exception: the function's error. In other processes one of another type than `raises` is a `RunFailure`.
    """
    result, error = None, None
    if jax.process_index() == 0:
        try:
            result = function()
        except Exception as found:
            error = found
    if jax.process_count() > 1:
        received = _of_first(error, raises)
        error = error or received
    if error is not None:
        raise error
    return result


def _of_first(error: Exception | None, raises: type[Exception]) -> Exception | None:
    """The error of the first process, as every process receives it."""
    known = b"1" if isinstance(error, raises) else b"0"
    sent = b"" if error is None else known + str(error).encode(errors="backslashreplace")
    padded = np.frombuffer(sent[:LONGEST].ljust(LONGEST, b"\0"), np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes().rstrip(b"\0")
    if not received:
        return None
    text = received[1:].decode(errors="replace")
    return raises(text) if received[:1] == b"1" else RunFailure(text)
