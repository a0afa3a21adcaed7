"""The base of class labels: numbers, and names of a run's class table."""

import difflib
import functools
import logging
import pathlib
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxdiff.conditioning.condition import Condition, Shape, json_or_text
from jaxdiff.data.classes import listed, numbers
from jaxdiff.errors import UserError, expect
from jaxdiff.typing import Array

_log = logging.getLogger(__name__)

KEYWORDS = ("all", "none")
"""Words that mean every class in turn, and no class."""


class LabelCondition(Condition, kw_only=True):
    """The base of class labels: integers [batch], or rows of weights [batch, num_classes] for mixtures of classes.

    A subclass has the field `num_classes`: labels are 0 to num_classes - 1.

    A user's value is a number or a name. A word or a string that is the name of a class means this class, also where
    the name is a number.

    Attributes:
      class_names: name of each class, from the class table of the run; empty for classes without names. It is no field
        of a config.
    """

    not_in_configs: ClassVar[frozenset[str]] = frozenset({"class_names"})

    class_names: tuple[str, ...] = ()

    flag: ClassVar[str | None] = "label"

    @property
    def classes(self) -> int:
        return self.num_classes

    @nn.nowrap
    def with_class_names(self, names: tuple[str, ...]) -> "LabelCondition":
        return self.clone(class_names=names) if len(names) == self.classes else self

    @nn.nowrap
    def example(self, batch: int, data_shape: Shape | None = None) -> Int[Array, "batch"]:
        return jnp.zeros((batch,), jnp.int32)

    @nn.nowrap
    def check(self, values: object, name: str = "label") -> None:
        """Raise `UserError` unless all labels are integers in range, or rows of weights that add up to 1."""
        labels = np.asarray(values)
        if np.issubdtype(labels.dtype, np.floating) and labels.ndim == 2:
            self._check_mixtures(labels, name)
            return
        fix = f"give integers from 0 to {self.classes - 1}"
        if not np.issubdtype(labels.dtype, np.integer):
            first = labels.flat[0] if labels.size else "[]"
            raise UserError(f"{name}={first}: expected an integer class, got {labels.dtype}. Fix: {fix}")
        expect(labels.ndim == 1, name, list(labels.shape), "one class per image", fix)
        wrong = labels[(labels < 0) | (labels >= self.classes)]
        if wrong.size:
            named = (
                f": {listed(self.class_names)}" if self.class_names not in ((), numbers(self.classes)) else ""
            )
            raise UserError(
                f"{name}={wrong[0]}: expected a class from 0 to {self.classes - 1}, got {wrong[0]}. Fix: {fix}{named}"
            )

    @nn.nowrap
    def read(self, value: object, name: str = "label") -> np.ndarray:
        """Numbers from numbers, names, or a list of both; rows of weights stay as they are."""
        return np.asarray(self._numbers(value, name))

    @nn.nowrap
    def parse(self, text: str, name: str) -> list[Any]:
        """A class, several with commas between them, ``all`` in turn, ``none``, or JSON; classes by name or number."""
        self._expect_unambiguous(text, name)
        if text in KEYWORDS:
            return list(map(np.int64, range(self.classes))) if text == "all" else [None]
        if text in self.class_names:
            return [self._number(text, name)]
        value = json_or_text(text, name)
        if not isinstance(value, str) or value in self.class_names:
            return [self.from_json(value, name, pathlib.Path())]
        words = [word.strip() for word in value.split(",")]
        return [None if word == "none" else self._number(word, name, text) for word in words]

    @nn.nowrap
    def from_json(self, value: Any, name: str, folder: pathlib.Path) -> Any:
        """A number or the weights of a mixture as they are; the number of a name."""
        return self._numbers(value, name)

    @nn.nowrap
    def to_arrays(self, value: Any, name: str, n: int) -> dict[str, np.ndarray]:
        """The labels; one class for all images is repeated for each."""
        labels = self.read(value, name)
        return {name: np.repeat(labels, n) if labels.ndim == 0 else labels}

    @nn.nowrap
    def describe(self, values: Any) -> list[str] | None:
        """The names of the classes, or else their numbers; None for mixtures."""
        labels = np.asarray(values)
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or not self.class_names:
            return super().describe(values)
        return [self.class_names[label] for label in labels]

    @nn.nowrap
    def _numbers(self, value: Any, name: str) -> Any:
        if isinstance(value, str):
            return self._number(value, name)
        if isinstance(value, np.ndarray) and value.dtype.kind in "UO":
            return self._numbers(value.tolist(), name)
        if isinstance(value, list | tuple):
            return [self._numbers(item, name) for item in value]
        if type(value) is int:  # NumPy's numbers come from data
            self._warn_of_number(value, name)
        return value

    @nn.nowrap
    def _number(self, word: str, name: str, given: str | None = None) -> Any:
        """The number of a class, given as its name or as a number; `given` is the word that it is a part of."""
        if word in self.class_names:
            number = self.class_names.index(word)
            if word.isdecimal() and int(word) != number:
                _warn(f"{name}: {word} is the class of this name, which has the number {number}")
            return np.int64(number)
        if word.isdecimal() and word.isascii() and len(word) < 10:
            self._warn_of_number(int(word), name)
            self.check(np.array([int(word)]), name)
            return np.int64(word)
        return self._refuse(word, name, word if given is None else given)

    @nn.nowrap
    def _refuse(self, word: str, name: str, given: str) -> Any:
        known = f"0 to {self.classes - 1}, such as 3 or 3,1,4"
        if self.class_names:
            close = difflib.get_close_matches(word, self.class_names, 1, 0.6)
            known = f"{listed(self.class_names)}" + (f" (did you mean {close[0]}?)" if close else "")
        raise UserError(
            f"{name}={given}: expected classes, got {word!r}. Fix: give classes of {known}, or all, or none"
        )

    @nn.nowrap
    def _expect_unambiguous(self, text: str, name: str) -> None:
        if text in KEYWORDS and text in self.class_names:
            number, meaning = self.class_names.index(text), "every class" if text == "all" else "no class"
            other = "leave the label out" if text == "all" else "null"
            raise UserError(
                f"{name}={text}: expected an unambiguous word, got a class that is named {text}. "
                f"Fix: write {number} for the class; for {meaning}: {other}"
            )

    @nn.nowrap
    def _warn_of_number(self, number: int, name: str) -> None:
        """Say which class is meant where the number is also the name of another class."""
        other = _numerals(self.class_names).get(number, number)
        if other != number and 0 <= number < self.classes:
            meant, word = self.class_names[number], self.class_names[other]
            _warn(
                f"{name}: {number} is the number of the class {meant}; the class {word} has the number {other}"
            )

    @nn.nowrap
    def _check_mixtures(self, rows: np.ndarray, name: str) -> None:
        fits = rows.shape[1] == self.classes and np.all(rows >= 0)
        if not (fits and np.allclose(np.sum(rows, axis=1), 1, atol=1e-3)):
            raise UserError(
                f"{name}={rows.dtype}{list(rows.shape)}: expected weights >= 0 of {self.classes} classes with sum 1, "
                f"got others. Fix: give rows [n, {self.classes}] that add up to 1, or None for no class"
            )


@functools.lru_cache(maxsize=8)
def _numerals(names: tuple[str, ...]) -> dict[int, int]:
    """The value of each name that is a whole number -> the number of its class."""
    return {int(name): number for number, name in enumerate(names) if name.isdecimal()}


@functools.lru_cache(maxsize=64)
def _warn(message: str) -> None:
    """Log a warning once."""
    _log.warning(message)
