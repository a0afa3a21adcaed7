"""Types of the fields of published configs, which are checked before a value is used.

>>> check({"layers_per_block": "1"}, {"layers_per_block": COUNT}, "config.json of the autoencoder")
UserError: layers_per_block='1': expected a whole number from 1, got '1'. Fix: correct it in the config.json of ...
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxdiff.errors import UserError

LONGEST = 200
"""Characters of a value in an error."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a field holds.

    Attributes:
      expected: in words.
      holds: whether a value is of this kind.
    """

    expected: str
    holds: Callable[[Any], bool]


def optional(kind: Kind) -> Kind:
    """The kind, or null."""
    return Kind(f"{kind.expected}, or null", lambda value: value is None or kind.holds(value))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


def _list(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(holds, value))


NUMBER = Kind("a number", _number)
POSITIVE = Kind("a number > 0", lambda value: _number(value) and value > 0)
COUNT = Kind("a whole number from 1", lambda value: _whole(value, 1))
INDEX = Kind("a whole number from 0", lambda value: _whole(value, 0))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str))
TEXTS = Kind("a list of texts", lambda value: isinstance(value, list | tuple) and all(map(TEXT.holds, value)))
OBJECT = Kind("an object", lambda value: isinstance(value, Mapping))
NUMBERS = Kind("a list of numbers", lambda value: _list(value, NUMBER.holds))
PAIR = Kind(
    "a whole number from 1, or two of them",
    lambda value: COUNT.holds(value) or (COUNTS.holds(value) and len(value) == 2),
)
COUNTS = Kind("a list of whole numbers from 1", lambda value: _list(value, COUNT.holds))


def check(config: Mapping[str, Any], fields: Mapping[str, Kind], file: str) -> None:
    """Raise a `UserError` about the first field that is there and not of its kind.

    Args:
      config: content of the file.
      fields: kinds by the fields' names; other fields of the config are left unread.
      file: the file in words, for errors.
    """
    for field, kind in fields.items():
        if field in config and not kind.holds(config[field]):
            shown = repr(config[field])[:LONGEST]
            raise UserError(
                f"{field}={shown}: expected {kind.expected}, got {shown}. "
                f"Fix: correct it in the {file}, or download that file again"
            )
