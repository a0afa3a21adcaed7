"""Configs that name classes: `spec` writes a block down, `build` makes the object.

A block is a `ConfigDict` of the target (``"module:Class"``) and every argument, defaults included. Blocks
nest, survive JSON, and can be overridden by path (``sampling.steps=20``). There is no registry: a config
imports the class it names, and a typo fails at the line that holds it.
"""

import dataclasses
import difflib
import glob
import importlib
import inspect
import json
import traceback
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxdiff.errors import UserError

TARGET = "target"
PLAIN = (bool, int, float, str, type(None))
LINEN_FIELDS = {"parent", "name"}
"""Fields of every Linen module that belong to Linen."""
BLOCK = (Mapping, ConfigDict)  # a ConfigDict is no Mapping by itself
MISFIT = object()  # what `_fit` gives when a value cannot be read as the type


def spec(cls: type, **arguments: Any) -> ConfigDict:
    """Write down ``cls(**arguments)`` as a config block, with all defaults filled in that can be written down.

    Raises:
      UserError: an argument that `cls` does not have, lacks and needs, or of the wrong type.
    """
    fields = fields_of(cls)
    for name, value in arguments.items():
        if name not in fields:
            fix = suggest(name, fields)
            raise UserError(f"{name}={_short(value)}: {cls.__name__} has no field {name!r}. Fix: {fix}")
    block: dict[str, Any] = {TARGET: f"{cls.__module__}:{cls.__qualname__}"}
    for name, field in fields.items():
        path = f"{cls.__name__}.{name}"
        if name in arguments:
            block[name] = typed(path, _owned(arguments[name], path), field.annotation)
        elif field.default is inspect.Parameter.empty:
            raise UserError(f"{path}: it has no default and was not given. Fix: pass {name}=...")
        elif _is_plain(field.default):
            block[name] = field.default
        elif dataclasses.is_dataclass(field.default):  # a part that is a default can be changed by path too
            block[name] = describe(field.default)
    return ConfigDict(block, type_safe=False)


def describe(part: Any) -> Any:
    """The block that makes an object of plain values and other such objects: `build` is the inverse."""
    if isinstance(part, tuple):
        return tuple(map(describe, part))
    if isinstance(part, Mapping):
        return {name: describe(value) for name, value in part.items()}
    if not dataclasses.is_dataclass(part):
        return part
    cls = type(part)
    return spec(cls, **{name: describe(getattr(part, name)) for name in fields_of(cls)})


def build(block: Any, packages: tuple[str, ...] | None = None, path: str = "config") -> Any:
    """Make what a block names, with everything inside it. Anything that is not a block is returned as it is.

    Args:
      block: a block of `spec`, or the plain dictionaries and lists that it becomes in JSON.
      packages: the only top-level packages whose classes may be made; None trusts the block, as one trusts
        the Python file that wrote it. A config that came with a checkpoint is not trusted.
      path: where the block stands, for errors.
    """
    if isinstance(block, BLOCK):
        items = {name: build(block[name], packages, f"{path}.{name}") for name in block}
        if TARGET not in items:
            return items
        cls = resolve(items.pop(TARGET), packages, f"{path}.{TARGET}")
        for name in items:
            if name not in fields_of(cls):
                fix = suggest(name, fields_of(cls))
                raise UserError(f"{path}.{name}: {cls.__name__} has no field {name!r}. Fix: {fix}")
        try:
            return cls(**items)
        except UserError as error:
            raise UserError(f"{path}.{error}") from None
        except TypeError as error:
            raise UserError(f"{path}: {error}. Fix: see {cls.__module__}.{cls.__name__}") from None
    if isinstance(block, list | tuple):
        return tuple(build(item, packages, f"{path}[{i}]") for i, item in enumerate(block))
    return block


def resolve(target: Any, packages: tuple[str, ...] | None = None, path: str = TARGET) -> type:
    """The class that ``"module:Class"`` names, if it lives in one of `packages`; `path` is for errors."""
    module_name, _, class_name = str(target).partition(":")
    field = f"{path}={target!r}"
    if not module_name or not class_name:
        raise UserError(f"{field}: this names no class. Fix: write package.module:Class")
    package = module_name.split(".")[0]
    if packages is not None and package not in packages:
        raise UserError(
            f"{field}: a stored config may only make classes of {', '.join(packages)}. "
            f"Fix: if you trust it, pass --packages={package}"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"{field}: {error}. Fix: check the module's name, or install the package") from None
    found = getattr(module, class_name, None)
    # What a module imports is no class of it: `jaxdiff.command:argparse` must not open a side door.
    if not inspect.isclass(found) or (packages and found.__module__.split(".")[0] not in packages):
        classes = inspect.getmembers(module, lambda it: inspect.isclass(it) and it.__module__ == module_name)
        fix = suggest(class_name, dict(classes)) if classes else "name another module"
        raise UserError(f"{field}: {module_name} has no class {class_name!r}. Fix: {fix}")
    return found


def load(path: str) -> ConfigDict:
    """What the `get_config` of a file returns, ``configs/x.py`` or ``configs/x.py:variant``.

    Raises:
      UserError: one line that names the line of the file, whatever goes wrong in it.
    """
    file, _, variant = path.partition(":")
    try:
        source = Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"--config={path}: {error.strerror}. Fix: {suggest_file(file)}") from None
    module = types.ModuleType("config")
    module.__file__ = file
    try:
        exec(compile(source, file, "exec"), module.__dict__)  # the user asked to run this program
        get_config = module.__dict__.get("get_config")
        if not callable(get_config):
            raise UserError("the file defines no get_config(). Fix: return spec(Experiment, ...) from it")
        config = get_config(variant) if variant else get_config()
        if not isinstance(config, ConfigDict):
            raise UserError("get_config() returned no block. Fix: return spec(Experiment, ...) from it")
        return config
    except Exception as error:
        raise UserError(f"--config={path}: {_blame(error, file)}") from error


def to_json(config: Any) -> str:
    """A config as JSON text, the form that is kept beside a checkpoint."""
    return json.dumps(_plain(config), indent=1) + "\n"


def from_json(text: str) -> ConfigDict:
    """The inverse of `to_json`: equal to the config up to what `build` makes of it."""
    return _owned(json.loads(text))


def differences(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """The fields in which two configs differ: path -> (old, new)."""
    old, new = _plain(old), _plain(new)
    found: dict[str, tuple[Any, Any]] = {}
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            inner = f"{path}.{name}" if path else name
            found.update(differences(old.get(name, "absent"), new.get(name, "absent"), inner))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, pair in enumerate(zip(old, new, strict=True)):
            found.update(differences(*pair, f"{path}[{i}]"))
    elif old != new:
        found[path] = (old, new)
    return found


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


def suggest_file(file: str = "") -> str:
    """The config files that the user may have meant."""
    found = sorted(glob.glob("configs/*.py"))
    close = difflib.get_close_matches(file, found, 1, 0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"choose one of {', '.join(found)}" if found else "give the path of a config file"


def fields_of(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's parameters by name, annotations resolved to types."""
    parameters = inspect.signature(cls).parameters
    hints = typing.get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__)
    hidden = LINEN_FIELDS if parameters.keys() >= LINEN_FIELDS else ()
    return {
        name: parameter.replace(annotation=hints.get(name, Any))
        for name, parameter in parameters.items()
        if name not in hidden and not parameter.kind.name.startswith("VAR_")
    }


def _is_plain(value: Any) -> bool:
    return isinstance(value, PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a type: ``int | None`` is int or None."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def typed(field: str, value: Any, annotation: Any) -> Any:
    """`value` read as `annotation`: an int becomes a float where a float is meant, and 1e5 an int."""
    for kind in kinds_of(annotation):
        if (fitted := _fit(value, kind)) is not MISFIT:
            return fitted
    names = " or ".join(map(_kind_name, kinds_of(annotation)))
    given = _kind_name(type(value))
    raise UserError(f"{field}={_short(value)}: {names} is expected, not {given}. Fix: give {names}")


def _fit(value: Any, kind: Any) -> Any:
    """`value` read as one alternative of a type, or `MISFIT`."""
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
    # Only a block can become an object. Other annotations promise nothing that can be checked here.
    return MISFIT if is_object(kind) and _is_plain(value) else value


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
    """Whether a type is a class or protocol of objects, which a config writes down as blocks."""
    kind = typing.get_origin(kind) or kind
    return inspect.isclass(kind) and kind not in (*PLAIN, tuple, Sequence, Any)


def _kind_name(kind: Any) -> str:
    if kind is type(None):
        return "None"
    if inspect.isclass(kind) and not typing.get_args(kind):
        return kind.__name__
    return str(kind).replace("typing.", "")


def _plain(config: Any) -> Any:
    """Dictionaries, lists and plain values only, as in JSON."""
    if isinstance(config, BLOCK):
        return {name: _plain(config[name]) for name in config}
    if isinstance(config, list | tuple):
        return [_plain(item) for item in config]
    return config


def _owned(tree: Any, path: str = "config") -> Any:
    """A copy in which nothing is shared, so that a change of ``levels[0]`` changes no other level."""
    if isinstance(tree, BLOCK):
        return ConfigDict({name: _owned(tree[name], f"{path}.{name}") for name in tree}, type_safe=False)
    if isinstance(tree, list | tuple):
        return tuple(_owned(item, f"{path}[{i}]") for i, item in enumerate(tree))
    if not isinstance(tree, PLAIN):
        name = tree.__name__ if inspect.isclass(tree) else type(tree).__name__
        fix = f"pass spec({name}, ...)"
        raise UserError(f"{path}={_short(tree)}: an object cannot be written down. Fix: {fix}")
    return tree


def _blame(error: Exception, file: str) -> str:
    """An error of a config file in one line, with the line of the file that it came from."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"line {error.lineno}: {error.msg}. Fix: mend the syntax there"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f"line {lines[-1]}: " if lines else ""
    if isinstance(error, UserError):
        return f"{where}{error}"
    text = " ".join(str(error).split())
    return f"{where}{type(error).__name__}: {text}. Fix: mend the file, or see the traceback with --debug"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
