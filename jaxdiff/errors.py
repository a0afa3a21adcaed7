"""Errors that commands print as one line: mistakes of the user, and failures of disks, files and training."""

import errno
import math
import os
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """A mistake that the user can fix. Its text has the form ``field=value: expected X, got Y. Fix: Z``.

    Commands print it as one line and exit with status 2; there is no traceback without ``--debug``.

    Args:
      message: one line.
      details: rows of a table, printed below it.
    """

    def __init__(self, message: str, details: Sequence[str] = ()):
        super().__init__("\n  ".join((message, *details)))
        self.message, self.details = message, tuple(details)


class RunFailure(RuntimeError):
    """A failure that no change of the command prevents: a full disk, damaged files, a loss that is not finite.

    Commands print it as one line and exit with status 1.
    """


def reason(error: BaseException) -> str:
    """The reason of an error in a few words: that of the operating system, or else the first line of its text."""
    text = " ".join(str(error).strip().partition("\n")[0].split())
    if number := getattr(error, "errno", None):
        return os.strerror(number)
    system = (os.strerror(code) for code in errno.errorcode)  # libraries quote it within longer texts
    quoted = next((known for known in system if known in text), None)
    return quoted or text[:200] or type(error).__name__


def printable(text: str) -> str:
    """A text as one line: line breaks, other control characters and undecodable bytes as escapes of Python."""
    escaped = (char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return "".join(escaped)


def positive(part: object, *fields: str) -> None:
    """Raise a `UserError` unless each of the fields is a finite number > 0 (None, for an optional field, passes)."""
    for name in fields:
        value = getattr(part, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name}={value!r}: expected a number > 0, got {value!r}. Fix: give {name} > 0")


def finite(part: object, *fields: str) -> None:
    """Raise a `UserError` unless each of the fields is a finite number, or a tuple of these, or None."""
    for name in fields:
        value = getattr(part, name)
        if value is not None and not all(map(math.isfinite, value if isinstance(value, tuple) else (value,))):
            raise UserError(
                f"{name}={value!r}: expected finite numbers, got {value!r}. Fix: give such a number"
            )


def between(
    part: object,
    field: str,
    low: float | int,
    high: float | int,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raise a `UserError` unless ``low <= field <= high``; an open or infinite end excludes its bound. None passes."""
    value = getattr(part, field)
    if value is None:
        return
    open_low, open_high = open_low or math.isinf(low), open_high or math.isinf(high)
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    if not (above and below):
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        raise UserError(
            f"{field}={value!r}: expected a number in {interval}, got {value!r}. Fix: choose one there"
        )


def one_of(part: object, field: str, choices: Iterable[object]) -> None:
    """Raise a `UserError` unless the field is one of `choices`."""
    value, known = getattr(part, field), list(choices)
    if value not in known:
        listed = ", ".join(map(repr, known))
        raise UserError(
            f"{field}={value!r}: expected one of {listed}, got {value!r}. Fix: choose one of these"
        )


def expect(
    condition: bool, field: str, value: object, expected: str, fix: str, got: str | None = None
) -> None:
    """Raise a `UserError` about `field` unless `condition` holds; `got` replaces the value where that says more."""
    if not condition:
        found = repr(value) if got is None else got
        raise UserError(f"{field}={value!r}: expected {expected}, got {found}. Fix: {fix}")
