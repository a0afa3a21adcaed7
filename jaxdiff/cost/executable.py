"""Compiled programs in files: a run on a machine with the devices starts without compiling.

A file is one line of JSON, which says what it was made for, and then what JAX serialized. JAX reads its part with
pickle, which can run code: load only files of your own.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jaxlib

from jaxdiff.errors import UserError, expect


def versions() -> dict[str, str]:
    """The versions that a program depends on."""
    return {"jax": jax.__version__, "jaxlib": jaxlib.__version__}


def write(program: Any, path: pathlib.Path, about: Mapping[str, Any]) -> None:
    """Write a compiled program.

    Args:
      program: a ``jax.stages.Compiled``.
      path: the file.
      about: plain values that say what it was compiled for, such as config and topology.
    """
    from jax.experimental import serialize_executable

    payload, _, _ = serialize_executable.serialize(program)
    header = json.dumps({**versions(), **about}, allow_nan=False)
    path.write_bytes(header.encode() + b"\n" + payload)


def about(path: pathlib.Path) -> dict[str, Any]:
    """What a file says that it was compiled for."""
    with path.open("rb") as file:
        return json.loads(file.readline())


def load(path: pathlib.Path, lowered: Any, devices: Sequence[Any]) -> Any:
    """The program of a file, ready to be called.

    Args:
      path: the file.
      lowered: the same program, lowered for `devices`: it has the structure of arguments and results.
      devices: the devices of the mesh, in its order.

    Returns:
      A ``jax.stages.Compiled``.

    Raises:
      UserError: another version of JAX has written the file.
    """
    from jax.experimental import serialize_executable

    found = about(path)
    for name, version in versions().items():
        expect(
            found.get(name) == version, str(path), found.get(name), f"{name} {version}", "compile it again"
        )
    header, _, payload = path.read_bytes().partition(b"\n")
    if not payload:
        raise UserError(f"{path}: expected a compiled program, got {header[:40]!r}. Fix: compile it again")
    trees = lowered.in_tree, jax.tree.structure(lowered.out_info)
    return serialize_executable.deserialize_and_load(payload, *trees, execution_devices=list(devices))
