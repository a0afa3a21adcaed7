"""A line on the terminal that shows the steps of sampling."""

import io
import sys
from typing import Any

from jaxdiff.generation.steps import OnStep

WIDTH = 30
"""Characters of the bar."""


def progress(stream: io.TextIOBase | None = None) -> OnStep | None:
    """A bar that is redrawn after each step; None if `stream` (by default stderr) is no terminal."""
    shown: Any = stream or sys.stderr
    if not shown.isatty():
        return None

    def draw(step: int, of: int, images: None) -> None:
        bar = "#" * (WIDTH * step // of)
        shown.write(f"\rstep {step} of {of} [{bar:<{WIDTH}}]" + "\n" * (step == of))
        shown.flush()

    return OnStep(draw, images=False)
