"""Which of many equal tests run always, and which before a release."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some(values: Iterable[Any], quick: Collection[Any]) -> list:
    """Parameters of a test: all of them with ``-m slow``, and those of `quick` always."""
    return [_param(value, () if value in quick else pytest.mark.slow) for value in values]


def _param(value: Any, marks: Any) -> Any:
    return pytest.param(*value, marks=marks) if isinstance(value, tuple) else pytest.param(value, marks=marks)
