"""Config blocks: `spec` writes a block, `build` makes the object that it describes.

A block is a `ConfigDict` of the target (``"module:Class"``) and every argument, defaults included. Blocks nest, can
be stored as JSON, and can be overridden by path (``sampling.steps=20``). There is no registry: a config file imports
the classes it uses, so a typo fails at its line.
"""

import dataclasses
import importlib
import inspect
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxdiff.config.renamed import current
from jaxdiff.config.suggestions import suggest
from jaxdiff.config.values import BLOCK, PLAIN, check_finite, is_plain, short, typed
from jaxdiff.errors import UserError

TARGET = "target"
UNWRITTEN = object()
"""Stands for a default that configs leave out, since it is neither plain nor a part."""
LINEN_FIELDS = {"parent", "name"}
"""Fields that Linen adds to every module."""


def spec(cls: type, **arguments: Any) -> ConfigDict:
    """Describe ``cls(**arguments)`` as a config block, including all defaults that a config can hold.

    Args:
      cls: class of the object; its constructor's parameters are the fields.
      **arguments: plain values, tuples and blocks.

    Raises:
      UserError: an argument is unknown, missing or of the wrong type.
    """
    fields = fields_of(cls)
    for name, value in arguments.items():
        if name not in fields:
            expected = f"expected a field of {cls.__name__}, got {name!r}"
            raise UserError(f"{name}={short(value)}: {expected}. Fix: {suggest(name, fields)}")
    block: dict[str, Any] = {TARGET: f"{cls.__module__}:{cls.__qualname__}"}
    for name, field in fields.items():
        path = f"{cls.__name__}.{name}"
        if name in arguments:
            value = typed(path, owned(arguments[name], path), field.annotation)
            block[name] = check_finite(path, value, field.default)
        elif field.default is inspect.Parameter.empty:
            raise UserError(f"{path}: expected a value, got none and no default. Fix: pass {name}=...")
        elif (default := written_default(field)) is not UNWRITTEN:
            block[name] = default
    return ConfigDict(block, type_safe=False)


def written_default(field: inspect.Parameter) -> Any:
    """The default of a field as a config holds it, or `UNWRITTEN`. A part can be overridden by path."""
    if is_plain(field.default):
        return field.default
    part = dataclasses.is_dataclass(field.default) or isinstance(field.default, Mapping)
    return describe(field.default) if part else UNWRITTEN


def describe(part: Any) -> Any:
    """The config block of a dataclass object: the inverse of `build`."""
    if isinstance(part, tuple):
        return tuple(map(describe, part))
    if isinstance(part, Mapping):
        return {name: describe(value) for name, value in part.items()}
    if not dataclasses.is_dataclass(part):
        return part
    cls = type(part)
    return spec(cls, **{name: describe(getattr(part, name)) for name in fields_of(cls)})


def build(block: Any, packages: tuple[str, ...] | None = None, path: str = "config") -> Any:
    """Make the object of a block and all objects inside it. Plain values are returned unchanged.

    Args:
      block: a block of `spec`, or the plain dictionaries and lists of its JSON form.
      packages: top-level packages whose classes may be instantiated; None allows all, for configs from trusted Python
        files. A config stored with a checkpoint is not trusted.
      path: path of the block, for errors.

    Raises:
      UserError: a class or field is unknown or not allowed, or the object refuses a value; names the path.
    """
    if isinstance(block, BLOCK):
        items = {name: build(block[name], packages, f"{path}.{name}") for name in block}
        if TARGET not in items:
            return items
        cls = resolve(items.pop(TARGET), packages, f"{path}.{TARGET}")
        for name in items:
            if name not in fields_of(cls):
                expected = f"expected a field of {cls.__name__}, got {name!r}"
                raise UserError(f"{path}.{name}: {expected}. Fix: {suggest(name, fields_of(cls))}")
        try:
            return cls(**items)
        except UserError as error:
            raise UserError(f"{path}.{error}") from None
        except TypeError as error:
            expected = f"expected the arguments of {cls.__name__}, got {error}"
            raise UserError(f"{path}: {expected}. Fix: see {cls.__module__}.{cls.__name__}") from None
    if isinstance(block, list | tuple):
        return tuple(build(item, packages, f"{path}[{i}]") for i, item in enumerate(block))
    return block


def resolve(target: Any, packages: tuple[str, ...] | None = None, path: str = TARGET) -> type:
    """Import the class ``"module:Class"``, which must be in one of `packages`; `path` is for errors."""
    module_name, _, class_name = current(str(target)).partition(":")
    field = f"{path}={target!r}"
    if not module_name or not class_name:
        raise UserError(f"{field}: expected a class, got {target!r}. Fix: write package.module:Class")
    package = module_name.split(".")[0]
    if packages is not None and package not in packages:
        raise UserError(
            f"{field}: expected a class of {', '.join(packages)} in a stored config, got one of {package}. "
            f"Fix: if you trust it, pass --packages={package}"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        expected = f"expected a module that can be imported, got {error}"
        fix = "check the module's name, or install the package"
        raise UserError(f"{field}: {expected}. Fix: {fix}") from None
    found = getattr(module, class_name, None)
    # A name that a module imports is not its class: `jaxdiff.cli.app:argparse` must not be reachable.
    if not inspect.isclass(found) or (packages and found.__module__.split(".")[0] not in packages):
        classes = inspect.getmembers(module, lambda it: inspect.isclass(it) and it.__module__ == module_name)
        fix = suggest(class_name, dict(classes)) if classes else "name another module"
        raise UserError(f"{field}: expected a class of {module_name}, got {class_name!r}. Fix: {fix}")
    return found


def fields_of(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's parameters by name, with annotations resolved to types.

    Those that the class names in ``not_in_configs`` are set by a run, and no config has them.
    """
    parameters = inspect.signature(cls).parameters
    hints = typing.get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__)
    hidden = set(LINEN_FIELDS) if parameters.keys() >= LINEN_FIELDS else set()
    hidden |= getattr(cls, "not_in_configs", set())
    return {
        name: parameter.replace(annotation=hints.get(name, Any))
        for name, parameter in parameters.items()
        if name not in hidden and not parameter.kind.name.startswith("VAR_")
    }


def owned(tree: Any, path: str = "config") -> Any:
    """A deep copy without shared blocks, so that a change of ``levels[0]`` changes no other level."""
    if isinstance(tree, BLOCK):
        return ConfigDict({name: owned(tree[name], f"{path}.{name}") for name in tree}, type_safe=False)
    if isinstance(tree, list | tuple):
        return tuple(owned(item, f"{path}[{i}]") for i, item in enumerate(tree))
    if not isinstance(tree, PLAIN):
        name = tree.__name__ if inspect.isclass(tree) else type(tree).__name__
        fix = f"pass spec({name}, ...)"
        raise UserError(f"{path}={short(tree)}: expected a plain value or a block, got {name}. Fix: {fix}")
    return tree
