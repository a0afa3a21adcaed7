"""Values of conditions from command-line words and JSON lines, as a `Generator` takes them."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxdiff.cli import app
from jaxdiff.conditioning.condition import Condition
from jaxdiff.data.image_files import read_image
from jaxdiff.data.text_files import lines as text_lines
from jaxdiff.data.text_files import read_json, read_text
from jaxdiff.errors import UserError, expect

Conditions = Mapping[str, Condition]
Shape = tuple[int, ...]


def listed(conditions: Conditions) -> str:
    """The conditions for messages: ``label (ClassLabel), low_res (ImageCondition)``."""
    return ", ".join(f"{name} ({type(each).__name__})" for name, each in conditions.items()) or "none"


def check_known(flag: str, name: str, conditions: Conditions) -> None:
    """Raise a `UserError` unless the model has a condition of this name."""
    known = listed(conditions)
    expect(name in conditions, flag, name, "a condition of the model", f"choose from {known}")


def pairs(flag: str, words: Iterable[str]) -> list[tuple[str, str]]:
    """The name and the value of each word ``NAME=VALUE``."""
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        expect(bool(name and equals), flag, word, "NAME=VALUE", f"write {flag} NAME=VALUE")
        found.append((name, value))
    return found


def numbers(flag: str, text: str, conditions: Conditions) -> dict[str, float]:
    """A number for each condition that is named: ``text=5,low_res=1.5``."""
    found = {}
    for name, value in pairs(flag, text.split(",")):
        check_known(flag, name, conditions)
        found[name] = number(f"{flag} {name}", value)
    return found


def number(flag: str, text: str) -> float:
    """The finite number that a word denotes."""
    try:
        return app.number(text)
    except ValueError:
        raise UserError(
            f"{flag}={text}: expected a finite number, got {text!r}. Fix: give one, such as 1.5"
        ) from None


def values(flag: str, words: Iterable[str], conditions: Conditions) -> dict[str, list]:
    """The values of words ``NAME=VALUE``, per name; a repeated name gives several. None for ``none``."""
    found: dict[str, list] = {}
    for name, text in pairs(flag, words):
        check_known(flag, name, conditions)
        none = text == "none" and name not in _labels(conditions)  # a label's own word, perhaps a class
        parsed = [None] if none else conditions[name].parse(text, f"{flag} {name}")
        expect(len(parsed) > 0, f"{flag} {name}", text, "at least one value", "give a file with one", "none")
        found.setdefault(name, []).extend(parsed)
    return found


def _labels(conditions: Conditions) -> list[str]:
    return [name for name, each in conditions.items() if each.classes is not None]


def lines(flag: str, path: str, conditions: Conditions) -> dict[str, list]:
    """The values of a file with a JSON object per image, per name; null stands for a condition's null.

    All lines name the same conditions. Paths are relative to the file's folder. A noise-augmented condition may have
    its level: ``{"value": "photo.png", "level": 0.1}``.
    """
    file = pathlib.Path(path).expanduser()
    found: dict[str, list] = {}
    for count, (number, line) in enumerate(_read_lines(flag, file)):
        where = f"{flag}={path}, line {number}"
        row = read_json(line, where, "write one JSON object per line")
        if not isinstance(row, dict):
            fix = 'write {"NAME": VALUE} for each image'
            raise UserError(f"{where}: expected a JSON object, got {line[:80]}. Fix: {fix}")
        for name, value in row.items():
            check_known(where, name, conditions)
            expect(
                count == 0 or name in found, where, name, "the names of the lines before", "add null there"
            )
            parsed = conditions[name].from_json(value, f"{where}, {name}", file.parent)
            found.setdefault(name, []).append(parsed)
        for name in found:
            expect(
                name in row, where, line, f"a value for {name}", "add it, or null for no condition", "none"
            )
    return found


def _read_lines(flag: str, file: pathlib.Path) -> list[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    text = read_text(file, f"{flag}={file}")
    rows = [(i, line) for i, line in enumerate(text_lines(text), 1) if line.strip()]
    expect(bool(rows), flag, str(file), "a JSON object per line", "write one for each image", "no lines")
    return rows


def in_turn(given: Mapping[str, list], n: int | None) -> tuple[dict[str, Any], int]:
    """For each condition one value per image, in turn, or a single one for all; and the number of images."""
    n = max((len(items) for items in given.values()), default=1) if n is None else n
    return {name: _cycle(items, n) for name, items in given.items()}, n


def _cycle(items: list, n: int) -> Any:
    if all(item is None for item in items):
        return None
    return items[0] if len(items) == 1 else [items[i % len(items)] for i in range(n)]


def noise(flag: str, path: str) -> np.ndarray:
    """The floats of a .npy file, which may contain no Python objects.

    Raises:
      UserError: there is no such file, or it is damaged, or its numbers are no finite floats.
    """
    fix = "give a .npy file of float32, as numpy.save writes it"
    try:
        array = np.load(pathlib.Path(path).expanduser(), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        got = " ".join(str(error).split())[:100]
        raise UserError(
            f"{flag}={path}: expected an array of floats, got an error: {got}. Fix: {fix}"
        ) from None
    floats = isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating)
    got = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
    finite = floats and array.size > 0 and bool(np.isfinite(array).all())
    expect(finite, flag, path, "an array of finite floats", fix, got)
    return array


def image_of_size(flag: str, path: str, shape: Shape) -> np.ndarray:
    """The image of a file, which must have this shape."""
    image, (height, width, channels) = read_image(flag, path, shape[2]), shape
    got = f"{image.shape[1]}x{image.shape[0]}"
    expect(
        image.shape == (height, width, channels), flag, path, f"an image of {width}x{height} pixels",
        f"scale or crop it, or try --size {image.shape[0]}x{image.shape[1]}", got,
    )  # fmt: skip
    return image
