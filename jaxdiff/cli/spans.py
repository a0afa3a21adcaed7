"""Spans on a command line: durations, and ranges of steps."""

import re

from jaxdiff.errors import expect

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(text: str) -> float:
    """The seconds of a duration: a number with a unit, ``90m``, or hours, minutes and seconds, ``HH:MM:SS``.

    Raises:
      UserError: it is neither, or not positive.
    """
    fix = "give 90m, 1.5h or 01:30:00, for example"
    clock, unit = re.fullmatch(r"(\d+):([0-5]\d):([0-5]\d)", text), re.fullmatch(r"(\d+\.?\d*)([smhd])", text)
    expect(bool(clock or unit), "--time-limit", text, "a duration with a unit, or HH:MM:SS", fix, text)
    if clock:
        hours, minutes, seconds = map(int, clock.groups())
        found = float(3600 * hours + 60 * minutes + seconds)
    else:
        assert unit
        found = float(unit[1]) * UNITS[unit[2]]
    expect(found > 0, "--time-limit", text, "a duration > 0", fix, text)
    return found


def steps_of(text: str) -> tuple[int, int]:
    """First and last step of ``START:STOP``.

    Raises:
      UserError: these are not two steps in order.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    expected, fix = "two steps START:STOP with 1 <= START <= STOP", "give 100:105, for example"
    first, last = map(int, match.groups()) if match else (0, 0)
    expect(1 <= first <= last, "--profile", text, expected, fix, text)
    return first, last
