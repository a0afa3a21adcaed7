"""Conditions in words: what a command line or a file says of them, as values for a `Generator`."""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxdiff.data import images
from jaxdiff.errors import UserError, require
from jaxdiff.generation import inputs

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}

Parts = Mapping[str, Any]


def listed(parts: Parts) -> str:
    """What there is, for messages: ``label (ClassLabel), low_res (ImageCondition)``."""
    return ", ".join(f"{name} ({type(part).__name__})" for name, part in parts.items()) or "none"


def named(flag: str, words: Iterable[str]) -> list[tuple[str, str]]:
    """``name=value`` each."""
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        require(bool(name and equals), flag, word, "it names no value", f"write {flag} NAME=VALUE")
        pairs.append((name, value))
    return pairs


def numbers(flag: str, text: str, parts: Parts) -> dict[str, float]:
    """``text=5,low_res=1.5``: a number for each condition that is named."""
    found = {}
    for name, value in named(flag, text.split(",")):
        _known(flag, name, parts)
        try:
            found[name] = float(value)
        except ValueError:
            raise UserError(f"{flag} {name}={value}: it is no number. Fix: give one, as 1.5") from None
    return found


def values(flag: str, words: Iterable[str], parts: Parts, shape: inputs.Shape) -> dict[str, list]:
    """What ``name=value`` words say; for a name that comes again and again, a value for each image in turn."""
    found: dict[str, list] = {}
    for name, word in named(flag, words):
        _known(flag, name, parts)
        found.setdefault(name, []).append(value(f"{flag} {name}", word, parts[name], shape))
    return found


def value(flag: str, word: str, part: Any, shape: inputs.Shape) -> Any:
    """A word as its condition reads it: a file for one that is an image, else JSON where it is that, or a text."""
    if word == "none":
        return None
    if inputs.image_of(part, shape) is not None:
        return picture_for(flag, word, part, shape)
    try:
        return json.loads(word)
    except ValueError:
        return word


def lines(flag: str, path: str, parts: Parts, shape: inputs.Shape) -> dict[str, list]:
    """Conditions from a file with a JSON object for each image, whose paths of pictures start at the file's folder.

    All lines name the same conditions; null stands for a condition's null. A noisy condition may be given with its
    level, ``{"value": "photo.png", "level": 0.1}``.
    """
    file = pathlib.Path(path).expanduser()
    try:
        rows = [(i, line) for i, line in enumerate(file.read_text().split("\n"), 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"{flag}={path}: {why}. Fix: give a file of JSON lines") from None
    require(bool(rows), flag, path, "it has no lines", "write a JSON object for each image")
    found: dict[str, list] = {}
    for count, (number, line) in enumerate(rows):
        where = f"{flag}={path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: {error}. Fix: write one JSON object a line") from None
        if not isinstance(row, dict):
            raise UserError(f'{where}: it is no object. Fix: write {{"NAME": VALUE}} for each image')
        for name, item in row.items():
            _known(where, name, parts)
            require(
                count == 0 or name in found, where, name, "the lines before do not have it", "add null there"
            )
            found.setdefault(name, []).append(
                _item(f"{where}, {name}", item, parts[name], shape, file.parent)
            )
        for name in found:
            require(name in row, where, line, f"it lacks {name}", "add it, or null for no condition")
    return found


def _item(where: str, item: Any, part: Any, shape: inputs.Shape, folder: pathlib.Path) -> Any:
    if isinstance(item, Mapping) and "value" in item:
        return {**item, "value": _item(where, item["value"], part, shape, folder)}
    if inputs.image_of(part, shape) is None or item is None:
        return item
    if not isinstance(item, str):
        raise UserError(f"{where}={item!r}: it is no path of a picture. Fix: give one")
    return picture_for(where, str(folder / pathlib.Path(item).expanduser()), part, shape)


def labels(text: str | None, classes: int) -> list[int] | None:
    """Classes that are asked for: ``3``, ``3,1,4``, ``all``, or none of them."""
    if text == "none":
        return None
    if text in (None, "all"):
        return list(range(classes))
    try:
        return [int(word) for word in str(text).split(",")]
    except ValueError:
        fix = f"give classes of 0 to {classes - 1}, such as 3 or 3,1,4, or all, or none"
        raise UserError(f"--label={text}: not a class. Fix: {fix}") from None


def in_turn(given: Mapping[str, list | None], n: int | None) -> tuple[dict[str, Any], int]:
    """One value for each image, those given in turn; a single one stays as it is, for all images."""
    n = max((len(items) for items in given.values() if items is not None), default=1) if n is None else n
    return {name: _spread(name, items, n) for name, items in given.items()}, n


def _spread(name: str, items: list | None, n: int) -> Any:
    if items is None or all(item is None for item in items):
        return None
    if len(items) == 1:
        return items[0]
    chosen = [items[i % len(items)] for i in range(n)]
    shapes = sorted({np.shape(_inner(item)) for item in chosen if isinstance(_inner(item), np.ndarray)})
    if len(shapes) > 1:
        first, other = (f"{shape[1]}x{shape[0]}" for shape in shapes[:2])
        raise UserError(
            f"{name}: pictures of {first} and of {other} pixels. Fix: give those of one size at a time"
        )
    if not any(isinstance(item, Mapping) for item in chosen):
        return chosen
    levels = [item["level"] if isinstance(item, Mapping) else None for item in chosen]
    require(
        None not in levels, name, levels, "some images have a level", "give one to each, or --level for all"
    )
    return {"value": [_inner(item) for item in chosen], "level": levels}


def _inner(item: Any) -> Any:
    return item.get("value") if isinstance(item, Mapping) else item


def at_levels(conditions: Mapping[str, Any], levels: Mapping[str, float]) -> dict[str, Any]:
    """Conditions with the noise levels of those that are made noisy."""
    changed = dict(conditions)
    for name, level in levels.items():
        require(
            conditions.get(name) is not None, "--level", name, "the condition is not given", "give it, too"
        )
        changed[name] = {"value": _inner(conditions[name]), "level": level}
    return changed


def picture_for(flag: str, path: str, part: Any, shape: inputs.Shape) -> np.ndarray:
    """A picture as its condition takes it: bytes, or for a `PartialImage` floats with alpha.

    Of that, a file without a transparent pixel is a hint, whether or not it has room for transparency.
    """
    dummy = inputs.image_of(part, shape)
    found = picture(flag, path, 0 if dummy is None else dummy.shape[-1])
    if not hasattr(part, "known"):
        return found
    return part.read(found[..., :-1] if np.all(found[..., -1] == 255) else found)


def with_gaps(flag: str, name: str, value: Any, part: Any, made: np.ndarray) -> Any:
    """Pictures for a `PartialImage` that become transparent where `made` [height, width, 1] is True, else opaque."""
    if isinstance(value, list):
        return [None if item is None else with_gaps(flag, name, item, part, made) for item in value]
    _, unknown = part.known(value)
    fix = f"leave {flag} out, or give a picture without transparency"
    require(bool(unknown.all()), flag, name, "this picture has transparent pixels of its own", fix)
    alpha = np.where(made, np.uint8(0), np.uint8(255))
    return part.read(np.concatenate([images.to_uint8(value[..., :-1]), alpha], axis=-1))


def picture(flag: str, path: str, channels: int) -> np.ndarray:
    """A picture as uint8 [height, width, channels], the way up that its EXIF says.

    The last of 2 or 4 channels is alpha; else transparent parts are white.
    """
    from PIL import Image, ImageOps

    require(channels in MODES, flag, path, f"no picture has {channels} channels", "give the values in Python")
    try:
        with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as opened:
            found = ImageOps.exif_transpose(opened)
            if found.mode.startswith("I"):  # 16 bits, which Pillow would clip
                found = Image.fromarray((np.asarray(found).astype(np.float32) / 257).round().astype(np.uint8))
            if channels in (1, 3) and found.has_transparency_data:
                paper = Image.new("RGBA", found.size, "white")
                found = Image.alpha_composite(paper, found.convert("RGBA"))
            array = np.asarray(found.convert(MODES[channels]))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        why = getattr(error, "strerror", None) or "it is no picture"
        raise UserError(f"{flag}={path}: {why}. Fix: give a PNG, JPEG or WEBP file") from None
    return array.reshape(*array.shape[:2], channels)


def picture_of_size(flag: str, path: str, shape: inputs.Shape) -> np.ndarray:
    """A picture that must have the size of the images that are made."""
    found, (height, width, _) = picture(flag, path, shape[2]), shape
    require(
        found.shape[:2] == (height, width), flag, path,
        f"it has {found.shape[1]}x{found.shape[0]} pixels, not {width}x{height}",
        f"scale or crop it, or try --size {found.shape[0]}x{found.shape[1]}",
    )  # fmt: skip
    return found


def size(text: str | None) -> tuple[int, int] | None:
    """``96x128``, height by width."""
    if text is None:
        return None
    words = text.lower().split("x")
    if len(words) != 2 or not all(word.isdigit() and int(word) > 0 for word in words):
        raise UserError(f"--size={text}: it is no size. Fix: write HEIGHTxWIDTH, as 96x128")
    return int(words[0]), int(words[1])


def _known(flag: str, name: str, parts: Parts) -> None:
    require(name in parts, flag, name, "the model has no such condition", f"it has: {listed(parts)}")
