"""The state of one checkpoint in Orbax's format: its handler, its arrays, and the comparison with a config's."""

import errno
import functools
import json
import logging
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxdiff.errors import UserError
from jaxdiff.training import integrity

OF_THE_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES)

DELETED, DRAFT = ".deleted", ".orbax-checkpoint-tmp"
"""Marks in the names of folders that an interrupted deletion or save leaves."""

SLICE = 2**20
"""Fewest bytes of an array for each device that has a copy. Larger arrays are written in as many slices."""


class Handler(ocp.CompositeCheckpointHandler):
    """Orbax's handler of a state. It writes further files, and the manifest last, under the temporary name.

    A bucket has no temporary names: there the manifest alone says that a save was not interrupted.

    Args:
      files: texts by file name.
    """

    def __init__(self, files: Mapping[str, str]):
        kinds = ocp.type_handlers
        registry = kinds.create_type_handler_registry(
            (int, kinds.ScalarHandler()),
            (np.ndarray, kinds.NumpyHandler()),
            # By default Orbax slices every array, and hundreds of small ones cost seconds on eight devices.
            (jax.Array, kinds.ArrayHandler(min_slice_bytes_for_replica_parallel=SLICE)),
        )
        super().__init__(state=ocp.PyTreeCheckpointHandler(type_handler_registry=registry))
        self._files = files

    def finalize(self, directory: epath.Path) -> None:
        if jax.process_index() != 0:
            super().finalize(directory)
            return
        step = int(directory.name.partition(".")[0])
        record = json.dumps({"format": integrity.FORMAT, "step": step}) + "\n"
        # Before the state is complete, so that it is never taken for one of a version before manifests.
        for name, text in {integrity.FORMAT_FILE: record, **self._files}.items():
            (directory / name).write_text(text)
        super().finalize(directory)
        integrity.write_manifest(directory, step)


@ocp.args.register_with_handler(Handler, for_save=True, for_restore=True)
class HandlerArgs(ocp.args.Composite):
    """The arguments of `Handler`; Orbax looks for a class per handler."""


def save_args(state: Any) -> HandlerArgs:
    """The arguments with which a checkpointer saves a state."""
    return HandlerArgs(**{integrity.ITEM: ocp.args.PyTreeSave(state)})


def metadata(folder: epath.Path) -> Any:
    """The tree of a state, with shapes and dtypes in place of arrays."""
    return ocp.PyTreeCheckpointHandler().metadata(folder / integrity.ITEM).tree


def read(folder: epath.Path, abstract: dict[str, Any]) -> dict[str, Any]:
    """Some fields of a state, in the shapes, types and shardings of `abstract`."""
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    # Partial, since fields may be left out, and an empty field may be newer than the checkpoint.
    args = ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=True)
    return ocp.PyTreeCheckpointHandler().restore(folder / integrity.ITEM, args=args)


def is_of_the_process(error: Exception) -> bool:
    """Whether an error of reading says nothing about the file: no memory, no file handles, no access."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in OF_THE_PROCESS


def delete_drafts(directory: epath.Path) -> None:
    """Delete what interrupted saves and deletions have left."""
    for path in directory.iterdir() if directory.exists() else ():
        if path.name.partition(".")[0].isdecimal() and (DRAFT in path.name or DELETED in path.name):
            path.rmtree()


def delete(folder: epath.Path) -> None:
    """Delete a checkpoint. An interrupted deletion leaves no half of one under its name."""
    if "://" not in str(folder):
        folder = folder.rename(unused(folder.parent / f"{folder.name}{DELETED}"))
    folder.rmtree()


def unused(path: epath.Path) -> epath.Path:
    """A path with this name, with underscores at its end until there is no such file."""
    return unused(path.parent / f"{path.name}_") if path.exists() else path


@functools.cache
def silence() -> None:
    """Hide what Orbax and TensorStore print about errors: these reach the caller as exceptions."""
    logging.getLogger("absl").addFilter(_is_not_of_orbax)
    logging.getLogger("asyncio").addFilter(_is_not_of_orbax)
    previous = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # After a failed write, TensorStore calls back to an event loop that Orbax has closed.
        if str(unraisable.exc_value) != "Event loop is closed":
            previous(unraisable)

    sys.unraisablehook = hook


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    if record.exc_info and record.exc_info[2] is not None:
        text += "".join(frame.filename for frame in traceback.extract_tb(record.exc_info[2]))
    return "orbax" not in record.pathname and "orbax" not in text


@jax.jit
def is_sound(networks: Any, optimizer: Any) -> Any:
    """Whether all numbers of parameters and averages are finite, and none of an optimizer is NaN.

    Infinities of an optimizer are sound: the best loss before the first one, for example.
    """
    checks = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(networks)]
    checks += [~jnp.any(jnp.isnan(leaf)) for leaf in jax.tree.leaves(optimizer)]
    return jnp.all(jnp.array(checks))


def compare(saved: Any, abstract: Any) -> None:
    """Raise a `UserError` that lists all leaves that differ; Orbax would silently cast other types."""
    old, new = _leaves(saved), _leaves(abstract)
    lines = [
        f"  {path}: {old.get(path, 'absent')} in the checkpoint, {new.get(path, 'absent')} in the config"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    ]
    if lines:
        shown = "; ".join(line.strip() for line in lines[:20])
        more = f"; and {len(lines) - 20} more" if len(lines) > 20 else ""
        raise UserError(
            f"checkpoint: expected the arrays of the config, got {len(lines)} that differ: {shown}{more}. "
            "Fix: use the config of the run that saved the checkpoint, or another directory"
        )


def _leaves(tree: Any) -> dict[str, str]:
    """Path -> dtype and shape. Paths are those of checkpoints: names and numbers."""
    flat, _ = jax.tree.flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape") and hasattr(x, "dtype"))

    def name(path: Any) -> str:
        return "/".join(
            str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path
        )

    return {name(path): f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}" for path, leaf in flat}
