"""Overrides: fields of a config changed by path, as the command line writes them."""

import ast
import functools
import re
import typing
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from jaxdiff.config.blocks import TARGET, fields_of, resolve, spec
from jaxdiff.config.renamed import current_field
from jaxdiff.config.suggestions import suggest
from jaxdiff.config.values import BLOCK, is_object, kinds_of, typed
from jaxdiff.errors import UserError


def override(config: ConfigDict, path: str, text: str, packages: tuple[str, ...] | None = None) -> None:
    """Set the field at `path` (``task.denoiser.network.levels[0].width``) to what `text` says.

    The value is checked against the field's type. A field that holds a block takes a class,
    ``jaxdiff.sampling.samplers.heun:Heun`` or ``jaxdiff.sampling.samplers.ddim:Ddim(eta=0.5)``. `packages` are those of
    `build`, for a config that came with a checkpoint.
    """
    flag = f"--config.{path}"
    keys = _current(config, _keys(path))
    try:
        parent, current = _get(config, keys[:-1]), _get(config, keys)
    except (LookupError, TypeError):
        fix = suggest(path, leaves(config), "--config.")
        raise UserError(f"{flag}={text}: there is no such field. Fix: {fix}") from None
    annotation = type(current)
    if isinstance(parent, BLOCK) and TARGET in parent:
        field = fields_of(resolve(parent[TARGET], packages, flag)).get(str(keys[-1]))
        if field is not None and field.annotation is not Any:
            annotation = field.annotation
    _assign(config, keys, _parse(flag, text, annotation))


def leaves(config: Any, prefix: str = "") -> Iterator[str]:
    """The path of every value in a config."""
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
    """What a word of the command line means where a value of type `annotation` is expected."""
    kinds = kinds_of(annotation)
    if type(None) in kinds and text.lower() == "none":
        return None
    if str in kinds:
        return text
    if any(map(is_object, kinds)):
        if ":" not in text:
            resolve(text, path=flag)  # raises, and says why this names no class
        return _parse_blocks(flag, text)
    if any(is_object(inner) for kind in kinds for inner in typing.get_args(kind)):
        parts = _parse_blocks(flag, text)
        return typed(flag, parts if isinstance(parts, tuple) else (parts,), annotation)
    if text.lower() in ("true", "false"):
        return typed(flag, text.lower() == "true", annotation)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    return typed(flag, tuple(value) if isinstance(value, list) else value, annotation)


def _parse_blocks(flag: str, text: str) -> Any:
    """``module:Class`` or ``module:Class(name=value)``, whose values may be blocks; with commas, a tuple."""
    try:
        return _read_block(flag, ast.parse(re.sub(r"(?<=\w):(?=\w)", ".", text), mode="eval").body)
    except UserError:
        raise
    except (SyntaxError, ValueError):
        raise UserError(f"{flag}={text}: cannot be read. Fix: write module:Class(name=value)") from None


def _read_block(flag: str, node: ast.expr) -> Any:
    """What an expression stands for, in which a class is written as an attribute of its module."""
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_read_block(flag, item) for item in node.elts)
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Attribute | ast.Name):
        return ast.literal_eval(node)
    if call.args:
        raise ValueError("arguments are given by name")
    module, _, name = ast.unparse(call.func).rpartition(".")
    values = {str(word.arg): _read_block(flag, word.value) for word in call.keywords}
    return spec(resolve(f"{module}:{name}" if module else name, path=flag), **values)


def _keys(path: str) -> list[str | int]:
    """``levels[0].width`` as the keys "levels", 0, "width"."""
    return [int(key[1:]) if key.startswith("[") else key for key in re.findall(r"\[\d+|[^.\[\]]+", path)]


def _current(config: Any, keys: list[str | int]) -> list[str | int]:
    """The keys with old names of fields replaced, as far as the path exists."""
    found: list[str | int] = []
    for key in keys:
        path: list[str | int] = [key]
        if isinstance(config, BLOCK) and TARGET in config:
            path = list(current_field(str(config[TARGET]), str(key)).split("."))
        found += path
        try:
            config = _get(config, path)
        except (LookupError, TypeError):
            config = None
    return found


def _get(config: Any, keys: list[str | int]) -> Any:
    return functools.reduce(lambda tree, key: tree[key], keys, config)


def _assign(config: Any, keys: list[str | int], value: Any) -> None:
    """Set the value at keys that exist; for an item of a tuple, make the tuple anew."""
    *outer, last = keys
    owner = _get(config, outer)
    if isinstance(owner, tuple):
        _assign(config, outer, tuple(value if i == last else item for i, item in enumerate(owner)))
    else:
        with owner.unlocked():
            owner[last] = value
