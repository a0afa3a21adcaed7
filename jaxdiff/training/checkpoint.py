"""Checkpoints of a run: written in the background, and complete or ignored after any kind of interruption.

``<directory>/<step>/state`` holds one `TrainState` in Orbax's format. Orbax writes to a temporary name first, so a
killed save leaves earlier checkpoints intact. But Orbax accepts any directory whose name is a number; `Checkpoints`
accepts complete ones only.
"""

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from jaxdiff.errors import UserError, expect

ITEM = "state"
COMPLETE = (f"{ITEM}/_METADATA", f"{ITEM}/manifest.ocdbt")
"""Files of every complete checkpoint. An interrupted copy or a stray directory lacks one of them."""

RENAMED = {"task_state": "memory", "extra_emas": "others"}
"""Fields of `TrainState` -> their names in checkpoints of jaxdiff 0.1.0."""

_log = logging.getLogger(__name__)


def _is_quiet(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname or record.levelno >= logging.ERROR


class Checkpoints:
    """The checkpoints in one directory.

    Args:
      directory: created by the first save.
      keep: number of latest checkpoints to keep. An older one is deleted only after its successor is complete on disk.
      keep_every: also keep every step that is a multiple of this, permanently.
      read_only: for sampling, while a run may still be writing.
    """

    def __init__(
        self, directory: epath.PathLike, keep: int = 3, keep_every: int | None = None, read_only: bool = False
    ):
        expect(keep >= 1, "keep", keep, "at least 1", "keep the latest one, from which a run continues")
        logging.getLogger("absl").addFilter(_is_quiet)
        self.directory = epath.Path(directory).expanduser().resolve()  # Orbax fails late on a relative path
        if not read_only:
            self._set_aside()
        policies: list[Any] = [checkpoint_managers.LatestN(keep)]
        if keep_every:
            policies.append(checkpoint_managers.EveryNSteps(keep_every))
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
            item_handlers={ITEM: ocp.PyTreeCheckpointHandler()},
        )

    def steps(self) -> list[int]:
        """The steps with a complete checkpoint, in order."""
        if not self.directory.exists():
            return []
        named = (path for path in self.directory.iterdir() if path.name.isdigit())
        return sorted(int(path.name) for path in named if _complete(path))

    def latest(self) -> int | None:
        """The last of `steps`, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: Any) -> bool:
        """Start to save `state`, which may be donated as soon as this returns.

        A state that is not finite is not saved, since it would replace one that is. An existing step stays as it is. An
        earlier save that failed, on a full disk for example, is reported now; older checkpoints and this one are safe.

        Returns:
          Whether a save was started.
        """
        try:
            self.wait()
        except Exception as error:
            _log.warning("the last checkpoint could not be written: %s", error)
        if step in self.steps():
            return False
        if not bool(_is_finite((state.params, state.ema))):
            _log.warning("step %d: the state is not finite and was not saved", step)
            return False
        args = ocp.args.Composite(**{ITEM: ocp.args.PyTreeSave(state)})
        return self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Wait until all saves are complete on disk.

        Raises:
          Exception: the error that made the last save fail.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception:
            self._manager.reload()  # or it would count the failed step among the latest
            raise

    def restore(self, step: int, abstract: Any) -> Any:
        """The state of `step` in the shapes, types and shardings of `abstract` (of this or any other mesh).

        Raises:
          UserError: the checkpoint has other leaves, or leaves of other shapes or types.
        """
        fields = [field.name for field in dataclasses.fields(abstract)]
        item = self._as_saved(step, {name: getattr(abstract, name) for name in fields})
        _compare(self.metadata(step), item)
        restore_args = ocp.checkpoint_utils.construct_restore_args(item)
        # All arrays agree by now. Partial, since an empty field may be newer than the checkpoint.
        args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
        restored = self._manager.restore(step, args=ocp.args.Composite(**{ITEM: args}))[ITEM]
        names = dict(zip(item, fields, strict=True))
        return dataclasses.replace(abstract, **{names[name]: value for name, value in restored.items()})

    def restore_part(self, step: int, name: str, abstract: Any) -> Any:
        """One field of the saved state, ``"ema"`` or ``"params"``; the rest is not read."""
        item = self._as_saved(step, {name: abstract})
        saved = self.metadata(step)
        _compare({key: saved[key] for key in item}, item)
        restore_args = ocp.checkpoint_utils.construct_restore_args(item)
        args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
        (found,) = self._manager.restore(step, args=ocp.args.Composite(**{ITEM: args}))[ITEM].values()
        return found

    def close(self) -> None:
        """Wait for unfinished saves, and stop the threads."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def metadata(self, step: int) -> Any:
        """The tree of the state of `step`, with shapes and dtypes in place of arrays."""
        steps = self.steps()
        found = ", ".join(map(str, steps)) or "none"
        expect(
            step in steps,
            "step",
            step,
            f"a checkpoint of this step in {self.directory}",
            f"choose from: {found}",
            "none",
        )
        return self._manager.item_metadata(step)[ITEM].tree

    def _as_saved(self, step: int, fields: dict[str, Any]) -> dict[str, Any]:
        """Fields of a state, under their names in the checkpoint of `step`."""
        saved = self.metadata(step)
        old = {name: RENAMED[name] for name in fields if RENAMED.get(name) in saved}
        return {old.get(name, name): value for name, value in fields.items()}

    def _set_aside(self) -> None:
        """Rename incomplete checkpoints, which Orbax would take for the latest step."""
        if jax.process_index() == 0 and self.directory.exists():
            for path in self.directory.iterdir():
                if path.name.isdigit() and not _complete(path):
                    _log.warning("%s is not a complete checkpoint: renamed to %s.incomplete", path, path.name)
                    path.rename(_unused(path.parent / f"{path.name}.incomplete"))
        multihost_utils.sync_global_devices(
            "set aside"
        )  # other processes read afterwards; with one, this does nothing


def _complete(path: epath.Path) -> bool:
    return all((path / name).exists() for name in COMPLETE)


def _unused(path: epath.Path) -> epath.Path:
    return _unused(path.parent / f"{path.name}_") if path.exists() else path


@jax.jit
def _is_finite(tree: Any) -> Any:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _compare(saved: Any, abstract: Any) -> None:
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
