"""Overrides: change fields of a config by path, in the notation of the command line."""

import ast
import functools
import io
import itertools
import re
import tokenize
import typing
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from jaxdiff.config.blocks import TARGET, UNWRITTEN, fields_of, resolve, spec, written_default
from jaxdiff.config.files import differences
from jaxdiff.config.renamed import current_field, upgrade
from jaxdiff.config.suggestions import suggest
from jaxdiff.config.values import BLOCK, check_finite, is_object, kinds_of, typed
from jaxdiff.errors import UserError

MALFORMED = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError)
"""Exceptions of Python's parsers for texts that are no Python, or too deeply nested."""


def override(config: ConfigDict, path: str, text: str, packages: tuple[str, ...] | None = None) -> None:
    """Set the field at `path` to the value that `text` denotes, checked against the field's type.

    Args:
      config: the config, changed in place.
      path: such as ``task.denoiser.network.levels[0].width``.
      text: a plain value; for a field that holds a block, a class: ``jaxdiff.sampling.samplers.heun:Heun`` or
        ``jaxdiff.sampling.samplers.ddim:Ddim(eta=0.5)``.
      packages: as in `build`, for a config stored with a checkpoint.

    Raises:
      UserError: the field does not exist, or `text` is not a value of its type.
    """
    flag = f"--config.{path}"
    try:
        keys = _current(config, _keys(path))
        _write_defaults(config, keys, packages, flag)
        parent, current = _get(config, keys[:-1]), _get(config, keys)
    except (LookupError, TypeError):
        fix = suggest(path, leaves(config), "--config.")
        raise UserError(f"{flag}={text}: expected a field of the config, got {path!r}. Fix: {fix}") from None
    annotation, default = type(current), None
    if isinstance(parent, BLOCK) and TARGET in parent:
        field = fields_of(resolve(parent[TARGET], packages, flag)).get(str(keys[-1]))
        if field is not None:
            annotation = annotation if field.annotation is Any else field.annotation
            default = field.default
    _assign(config, keys, check_finite(flag, _parse(flag, text, annotation), default))


def block(flag: str, text: str) -> Any:
    """The block that ``module:Class`` or ``module:Class(name=value)`` denotes, for a flag that takes a part.

    Raises:
      UserError: `text` is no such class with arguments.
    """
    found = _parse_blocks(flag, text)
    if not isinstance(found, BLOCK):
        fix = "write module:Class(name=value)"
        raise UserError(f"{flag}={text}: expected a class with arguments, got {text!r}. Fix: {fix}")
    return found


def is_default(config: ConfigDict, path: str) -> bool:
    """Whether the field at `path` has its default value."""
    keys = _keys(path)
    parent, value = _get(config, keys[:-1]), _get(config, keys)
    if not isinstance(parent, BLOCK) or TARGET not in parent:
        return False
    field = fields_of(resolve(parent[TARGET]))[str(keys[-1])]
    return not differences(written_default(field), value)


def leaves(config: Any, prefix: str = "") -> Iterator[str]:
    """The paths of all values in a config."""
    if isinstance(config, BLOCK):
        for name in config:
            if name != TARGET:
                path = f"{prefix}.{name}" if prefix else str(name)
                yield path
                yield from leaves(config[name], path)
    elif isinstance(config, list | tuple):
        for i, item in enumerate(config):
            if isinstance(item, BLOCK):
                yield f"{prefix}[{i}]"
            yield from leaves(item, f"{prefix}[{i}]")


def _parse(flag: str, text: str, annotation: Any) -> Any:
    """Parse the text of the command line as a value of type `annotation`."""
    kinds = kinds_of(annotation)
    if type(None) in kinds and text.lower() == "none":
        return None
    if str in kinds:
        return text
    if any(map(is_object, kinds)):
        if ":" not in text:
            resolve(text, path=flag)  # raises an error with a suggestion
        return _parse_blocks(flag, text)
    if any(is_object(inner) for kind in kinds for inner in typing.get_args(kind)):
        parts = _parse_blocks(flag, text)
        return typed(flag, parts if isinstance(parts, tuple) else (parts,), annotation)
    if text.lower() in ("true", "false"):
        return typed(flag, text.lower() == "true", annotation)
    value = _literal(text)
    return typed(flag, tuple(value) if isinstance(value, list) else value, annotation)


def _literal(text: str) -> Any:
    """The plain value that a text denotes in Python, or the text itself."""
    if text.lower() in ("nan", "inf", "-inf"):
        return float(text)
    try:
        return ast.literal_eval(text)
    except MALFORMED:
        return text


def _parse_blocks(flag: str, text: str) -> Any:
    """Parse ``module:Class`` or ``module:Class(name=value)``, whose values may be blocks; commas make a tuple."""
    try:
        return _read_block(flag, ast.parse(_with_dots(text), mode="eval").body)
    except UserError:
        raise
    except MALFORMED:
        fix = "write module:Class(name=value)"
        raise UserError(f"{flag}={text}: expected a class with arguments, got {text!r}. Fix: {fix}") from None


def _with_dots(text: str) -> str:
    """The text with ``module:Class`` as ``module.Class``; strings stay as they are."""
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    lines = [list(line) for line in text.splitlines(keepends=True)]
    for before, colon, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        names = before.type == after.type == tokenize.NAME
        if names and colon.string == ":" and (before.end, colon.end) == (colon.start, after.start):
            row, column = colon.start
            lines[row - 1][column] = "."
    return "".join(itertools.chain(*lines))


def _read_block(flag: str, node: ast.expr) -> Any:
    """The block, tuple or value of an expression, in which a class is written as an attribute of its module."""
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_read_block(flag, item) for item in node.elts)
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Attribute | ast.Name):
        return ast.literal_eval(node)
    if call.args:
        raise ValueError("positional arguments")
    module, _, name = ast.unparse(call.func).rpartition(".")
    values = {str(keyword.arg): _read_block(flag, keyword.value) for keyword in call.keywords}
    block = upgrade({TARGET: f"{module}:{name}" if module else name, **values})
    return spec(resolve(block.pop(TARGET), path=flag), **block)


def _keys(path: str) -> list[str | int]:
    """``levels[0].width`` as the keys "levels", 0, "width"; raises `LookupError` for what is no path."""
    if re.fullmatch(r"[^.\[\]]+(\.[^.\[\]]+|\[[0-9]{1,9}\])*", path) is None:
        raise LookupError(path)
    return [int(key[1:]) if key.startswith("[") else key for key in re.findall(r"\[[0-9]+|[^.\[\]]+", path)]


def _current(config: Any, keys: list[str | int]) -> list[str | int]:
    """The keys with old field names replaced, as far as the path exists."""
    found: list[str | int] = []
    inner = config
    for key in keys:
        path: list[str | int] = [key]
        if isinstance(inner, BLOCK) and TARGET in inner:
            path = list(current_field(str(inner[TARGET]), str(key)).split("."))
        found += path
        try:
            inner = _get(inner, path)
        except (LookupError, TypeError):
            inner = None
    return found


def _write_defaults(config: Any, keys: list[str | int], packages: tuple[str, ...] | None, flag: str) -> None:
    """Write the defaults of fields on a path that are missing, since an older version has stored the config."""
    inner: Any = config
    for key in keys:
        if isinstance(inner, BLOCK) and TARGET in inner and key not in inner:
            field = fields_of(resolve(inner[TARGET], packages, flag)).get(str(key))
            default = UNWRITTEN if field is None else written_default(field)
            if default is not UNWRITTEN:
                with inner.unlocked():
                    inner[key] = default
        inner = _get(inner, [key])


def _get(config: Any, keys: list[str | int]) -> Any:
    return functools.reduce(lambda tree, key: tree[key], keys, config)


def _assign(config: Any, keys: list[str | int], value: Any) -> None:
    """Set the value at existing keys; replaces a tuple to change one of its items."""
    *outer, last = keys
    owner = _get(config, outer)
    if isinstance(owner, tuple):
        _assign(config, outer, tuple(value if i == last else item for i, item in enumerate(owner)))
    else:
        with owner.unlocked():
            owner[last] = value
