"""Values of config fields: their types, and the conversion of a value to a field's type."""

import inspect
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxdiff.errors import UserError

PLAIN = (bool, int, float, str, type(None))
BLOCK = (Mapping, ConfigDict)  # a ConfigDict is not a Mapping
MISFIT = object()  # result of `_fit` for a value of another type


def is_plain(value: Any) -> bool:
    """Whether a value is a plain value or a tuple of these."""
    return isinstance(value, PLAIN) or (isinstance(value, tuple) and all(map(is_plain, value)))


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a type: ``int | None`` is int or None."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def typed(field: str, value: Any, annotation: Any) -> Any:
    """Convert `value` to the type `annotation`: an int becomes a float for a float field, and 1e5 an int.

    Raises:
      UserError: the value has another type.
    """
    for kind in kinds_of(annotation):
        if (fitted := _fit(value, kind)) is not MISFIT:
            return fitted
    names = " or ".join(map(_kind_name, kinds_of(annotation)))
    given = _kind_name(type(value))
    raise UserError(f"{field}={short(value)}: expected {names}, got {given}. Fix: give {names}")


def check_finite(field: str, value: Any, default: Any = None) -> Any:
    """`value`, if its numbers are finite; infinity is also the value of a field whose default is infinite.

    Raises:
      UserError: a number is NaN or infinite.
    """
    endless = isinstance(default, float) and math.isinf(default)
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number) and not (endless and math.isinf(number)):
            raise UserError(f"{field}={short(value)}: expected a finite number, got {number}. Fix: give one")
    return value


def _fit(value: Any, kind: Any) -> Any:
    """`value` converted to one alternative of a type, or `MISFIT`."""
    if kind is tuple or typing.get_origin(kind) is tuple:
        return _fit_tuple(value, typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return value if value in typing.get_args(kind) else MISFIT
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    if kind in PLAIN:
        return value if type(value) is kind else MISFIT
    # Only a block can become an object. Other annotations cannot be checked here.
    return MISFIT if is_object(kind) and is_plain(value) else value


def _fit_tuple(value: Any, kinds: tuple[Any, ...]) -> Any:
    if not isinstance(value, tuple):
        return MISFIT
    if not kinds:
        return value
    kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
    if len(kinds) != len(value):
        return MISFIT
    try:
        return tuple(typed("item", item, kind) for item, kind in zip(value, kinds, strict=True))
    except UserError:
        return MISFIT


def is_object(kind: Any) -> bool:
    """Whether a type is a class or protocol of objects, which configs describe by blocks."""
    kind = typing.get_origin(kind) or kind
    return inspect.isclass(kind) and kind not in (*PLAIN, tuple, Sequence, Any)


def _kind_name(kind: Any) -> str:
    if kind is type(None):
        return "None"
    if inspect.isclass(kind) and not typing.get_args(kind):
        return kind.__name__
    return str(kind).replace("typing.", "")


def short(value: Any) -> str:
    """The repr of a value, at most 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) < 60 else f"{text[:57]}..."
