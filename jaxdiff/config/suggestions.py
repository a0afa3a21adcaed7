"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable


def suggest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """'did you mean ...?' for a name close to `name` or to its last component; otherwise a list of all names.

    Args:
      name: the misspelt name or dotted path.
      known: the valid names or paths.
      prefix: text before the suggested name, such as ``--config.``.
    """
    known = list(known)
    by_last = {path.rpartition(".")[2]: path for path in reversed(known)}
    close = difflib.get_close_matches(name, known, 1, 0.75)
    if not close:
        last = difflib.get_close_matches(name.rpartition(".")[2], by_last, 1, 0.6)
        close = [by_last[component] for component in last] or difflib.get_close_matches(name, known, 1, 0.5)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return f"use one of {', '.join(path for path in known if '.' not in path)}"
