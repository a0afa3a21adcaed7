"""Config files: reading Python files, storing configs as JSON next to checkpoints, and comparing them."""

import difflib
import errno
import glob
import inspect
import json
import re
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxdiff.config.blocks import owned
from jaxdiff.config.renamed import upgrade
from jaxdiff.config.values import BLOCK
from jaxdiff.errors import UserError


def load(path: str) -> ConfigDict:
    """Run the `get_config` of a file, ``configs/x.py`` or ``configs/x.py:variant``, and return its config.

    Raises:
      UserError: the file cannot be read or fails; names the line of the file.
    """
    file, variant = file_and_variant(path)
    try:
        if Path(file).exists() and not Path(file).is_file():  # a pipe or device could block, or never end
            raise IsADirectoryError(
                errno.EISDIR, "Is a directory" if Path(file).is_dir() else "no regular file"
            )
        source = Path(file).read_bytes()
    except OSError as error:
        expected = f"expected a config file, got {error.strerror}"
        raise UserError(f"--config={path}: {expected}. Fix: {suggest_file(file)}") from None
    module = types.ModuleType("config")
    module.__file__ = file
    try:
        exec(compile(source, file, "exec"), module.__dict__)  # the user's own program
        get_config = module.__dict__.get("get_config")
        if not callable(get_config):
            raise UserError(
                "expected a function get_config(), got none. Fix: return spec(Experiment, ...) from it"
            )
        config = get_config(variant) if _takes(get_config, variant) else get_config()
        if not isinstance(config, ConfigDict):
            got = type(config).__name__
            raise UserError(
                f"expected a block from get_config(), got {got}. Fix: return spec(Experiment, ...) from it"
            )
        return config
    except (Exception, SystemExit) as error:
        raise UserError(f"--config={path}: {_blame(error, file)}") from error


def _takes(get_config: Callable[..., Any], variant: str) -> bool:
    """Whether there is a variant to call `get_config` with; raises `UserError` if the config has none."""
    if not variant:
        return False
    try:
        inspect.signature(get_config).bind(variant)
    except TypeError:
        raise UserError(
            f"expected a config without variants, got the variant {variant!r}. Fix: leave :{variant} out"
        ) from None
    return True


def file_and_variant(path: str) -> tuple[str, str]:
    """The file and the variant of ``configs/x.py:variant``; the variant is "" if there is none.

    Both may contain colons: the variant follows the last colon after which a file is left.
    """
    colons = [len(path), *(match.start() for match in reversed([*re.finditer(":", path)]))]
    for end in colons:
        if Path(path[:end]).is_file():
            return path[:end], path[end + 1 :]
    file, _, variant = path.rpartition(":")  # for the error: there is no such file
    return (file, variant) if file.endswith(".py") else (path, "")


def to_json(config: Any) -> str:
    """A config as JSON text, the form stored next to a checkpoint."""
    return json.dumps(plain(config), indent=1) + "\n"


def from_json(text: str) -> ConfigDict:
    """The config of a JSON text: the inverse of `to_json`, with old names of classes and fields replaced."""
    return owned(upgrade(json.loads(text)))


def differences(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields in which two configs differ, path -> (old, new); "absent" stands for a missing field."""
    old, new = plain(old), plain(new)
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


def suggest_file(file: str = "") -> str:
    """A suggestion of config files with a name like `file`."""
    found = sorted(glob.glob("configs/*.py"))
    close = difflib.get_close_matches(file, found, 1, 0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"choose one of {', '.join(found)}" if found else "give the path of a config file"


def plain(config: Any) -> Any:
    """A config, or a part of it, as dictionaries, lists and plain values, as in JSON."""
    if isinstance(config, BLOCK):
        return {name: plain(config[name]) for name in config}
    if isinstance(config, list | tuple):
        return [plain(item) for item in config]
    return config


def _blame(error: BaseException, file: str) -> str:
    """An error of a config file as one line of text, with the line number in the file."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"line {error.lineno}: expected Python, got {error.msg}. Fix: correct the syntax"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f"line {lines[-1]}: " if lines else ""
    if isinstance(error, UserError):
        return f"{where}{error}"
    text = " ".join(str(error).split())
    return f"{where}{type(error).__name__}: {text}. Fix: correct the file, or see the traceback with --debug"
