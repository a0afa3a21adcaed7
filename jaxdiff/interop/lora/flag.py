"""The command-line flag ``--lora FILE[:SCALE]``."""

import math
import os

from jaxdiff.errors import expect


def parse_flag(text: str, flag: str = "--lora") -> tuple[str, float]:
    """The file and the scale of ``FILE[:SCALE]``, such as ``--lora`` takes; the scale is 1 without a number.

    The text is split at its last colon, only if a number follows and no file has the whole text as its name. So a path
    may contain colons (``C:\\x.safetensors:0.5``).

    Raises:
      UserError: there is no such file, or the scale is not finite.
    """
    path, colon, last = text.rpartition(":")
    if os.path.exists(text):
        return text, 1.0
    scale = _number(last) if colon else None
    fix = "give an existing FILE, or FILE:SCALE with a number"
    if scale is None:
        expect(
            not (colon and os.path.exists(path)),
            flag,
            text,
            "a number after the last colon",
            fix,
            repr(last),
        )
    expect(
        scale is not None and os.path.exists(path),
        flag,
        text,
        "an existing file",
        fix,
        "none of that name",
    )
    assert scale is not None
    expect(math.isfinite(scale), flag, text, "a finite scale", fix, last)
    return path, scale


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
