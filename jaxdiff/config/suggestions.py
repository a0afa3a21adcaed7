"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable


def suggest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """'did you mean ...?' by the whole of `name` or by its last word, else all that there is to choose."""
    known = list(known)
    by_last_word = {path.rpartition(".")[2]: path for path in reversed(known)}
    close = difflib.get_close_matches(name, known, 1, 0.75)
    if not close:
        words = difflib.get_close_matches(name.rpartition(".")[2], by_last_word, 1, 0.6)
        close = [by_last_word[word] for word in words] or difflib.get_close_matches(name, known, 1, 0.5)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return f"use one of {', '.join(path for path in known if '.' not in path)}"
