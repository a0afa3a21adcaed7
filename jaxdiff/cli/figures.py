"""Figures as people read them, and aligned tables for a terminal. Imports nothing heavy."""

from collections.abc import Iterable


def aligned(rows: Iterable[tuple[str, str, str]]) -> str:
    """Rows of a name, a figure and a note as lines; names are flush left, and figures flush right."""
    listed = list(rows)
    names, values = (max(len(row[i]) for row in listed) for i in (0, 1))
    lines = (f"{name.ljust(names)}  {value.rjust(values)}  {note}".rstrip() for name, value, note in listed)
    return "\n".join(lines)


def si(number: int | float) -> str:
    """Four digits and an SI prefix: 109.7 G."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 999.95:
            return f"{number:.4g} {prefix}"
        number /= 1000
    return f"{number:.4g} P"


def duration(seconds: float) -> str:
    """Three digits and the unit that suits them: 1.5 h."""
    for unit, size, least in (("d", 86400, 2), ("h", 3600, 2), ("min", 60, 2), ("s", 1, 1), ("ms", 1e-3, 1)):
        if seconds >= least * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
