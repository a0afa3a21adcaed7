"""Config files and JSON: configs read from Python files, stored beside checkpoints, and compared."""

import difflib
import glob
import json
import traceback
import types
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxdiff.config.blocks import owned
from jaxdiff.config.renamed import upgrade
from jaxdiff.config.values import BLOCK
from jaxdiff.errors import UserError


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
    """The inverse of `to_json`, with old names of classes and fields replaced: equal to the config for `build`."""
    return owned(upgrade(json.loads(text)))


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


def suggest_file(file: str = "") -> str:
    """The config files that the user may have meant."""
    found = sorted(glob.glob("configs/*.py"))
    close = difflib.get_close_matches(file, found, 1, 0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"choose one of {', '.join(found)}" if found else "give the path of a config file"


def _plain(config: Any) -> Any:
    """Dictionaries, lists and plain values only, as in JSON."""
    if isinstance(config, BLOCK):
        return {name: _plain(config[name]) for name in config}
    if isinstance(config, list | tuple):
        return [_plain(item) for item in config]
    return config


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
