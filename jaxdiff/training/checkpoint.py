"""Checkpoints of a run: written in the background, found again after any kind of death.

``<directory>/<step>/state`` holds one `TrainState` in Orbax's format. Orbax writes to a temporary name first,
so a killed save leaves the earlier ones as they were; but it trusts any directory whose name is a number,
which `Checkpoints` does not.
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

from jaxdiff.errors import UserError, require

ITEM = "state"
COMPLETE = (f"{ITEM}/_METADATA", f"{ITEM}/manifest.ocdbt")
"""What a finished checkpoint has, of which an interrupted copy or a stray directory lacks something."""

RENAMED = {"task_state": "memory", "extra_emas": "others"}
"""Fields of `TrainState` -> their names in checkpoints of jaxdiff 0.1.0."""

_log = logging.getLogger(__name__)


def _is_quiet(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname or record.levelno >= logging.ERROR


class Checkpoints:
    """The checkpoints below one directory.

    Args:
      directory: made when something is to be saved.
      keep: how many of the latest to keep. An older one is deleted only after its successor is complete on
        disk.
      keep_every: also keep the steps that this divides, for good.
      read_only: for sampling, while a run may still be writing.
    """

    def __init__(
        self, directory: epath.PathLike, keep: int = 3, keep_every: int | None = None, read_only: bool = False
    ):
        require(keep >= 1, "keep", keep, "the latest checkpoint is needed to go on", "keep at least 1")
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
                create=not read_only, read_only=read_only, cleanup_tmp_directories=not read_only,
            ),
            item_handlers={ITEM: ocp.PyTreeCheckpointHandler()},
        )  # fmt: skip

    def steps(self) -> list[int]:
        """The steps of which a complete checkpoint exists, in order."""
        if not self.directory.exists():
            return []
        named = (path for path in self.directory.iterdir() if path.name.isdigit())
        return sorted(int(path.name) for path in named if _complete(path))

    def latest(self) -> int | None:
        """The last of `steps`, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: Any) -> bool:
        """Start saving `state`, which may be given away (donated) as soon as this returns.

        Returns whether a save was started: a state that is not finite is not worth keeping and would push out
        one that is, and an existing step stays as it is. A save that failed earlier (on a full disk) is
        reported now, and costs neither an older checkpoint nor this one.
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
        """Return when all that was saved is complete on disk.

        Raises:
          Exception: whatever has kept the last save from completing.
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
        _compare(self._metadata(step), item)
        restore_args = ocp.checkpoint_utils.construct_restore_args(item)
        # All arrays agree by now. Partial, since an empty field may be newer than the checkpoint.
        args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
        restored = self._manager.restore(step, args=ocp.args.Composite(**{ITEM: args}))[ITEM]
        names = dict(zip(item, fields, strict=True))
        return dataclasses.replace(abstract, **{names[name]: value for name, value in restored.items()})

    def restore_part(self, step: int, name: str, abstract: Any) -> Any:
        """One field of the saved state, ``"ema"`` or ``"params"``; the rest is not read."""
        item = self._as_saved(step, {name: abstract})
        saved = self._metadata(step)
        _compare({key: saved[key] for key in item}, item)
        restore_args = ocp.checkpoint_utils.construct_restore_args(item)
        args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
        (found,) = self._manager.restore(step, args=ocp.args.Composite(**{ITEM: args}))[ITEM].values()
        return found

    def close(self) -> None:
        """Wait for what is being saved, and let the threads go."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _metadata(self, step: int) -> Any:
        steps = self.steps()
        found = ", ".join(map(str, steps)) or "none"
        require(step in steps, "step", step, f"it is not in {self.directory}", f"choose from: {found}")
        return self._manager.item_metadata(step)[ITEM].tree

    def _as_saved(self, step: int, fields: dict[str, Any]) -> dict[str, Any]:
        """Fields of a state under the names that they have in the checkpoint of `step`."""
        saved = self._metadata(step)
        old = {name: RENAMED[name] for name in fields if RENAMED.get(name) in saved}
        return {old.get(name, name): value for name, value in fields.items()}

    def _set_aside(self) -> None:
        """Rename what looks like a step and is none: Orbax would take it for the latest."""
        if jax.process_index() == 0 and self.directory.exists():
            for path in self.directory.iterdir():
                if path.name.isdigit() and not _complete(path):
                    _log.warning("%s is not a complete checkpoint: renamed to %s.incomplete", path, path.name)
                    path.rename(_unused(path.parent / f"{path.name}.incomplete"))
        multihost_utils.sync_global_devices("set aside")  # before the extra_emas look; alone, it does nothing


def _complete(path: epath.Path) -> bool:
    return all((path / name).exists() for name in COMPLETE)


def _unused(path: epath.Path) -> epath.Path:
    return _unused(path.parent / f"{path.name}_") if path.exists() else path


@jax.jit
def _is_finite(tree: Any) -> Any:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _compare(saved: Any, abstract: Any) -> None:
    """Complain of every leaf in which a checkpoint differs; Orbax would cast other types without a word."""
    old, new = _leaves(saved), _leaves(abstract)
    lines = [f"  {path}: {old.get(path, 'absent')} in the checkpoint, {new.get(path, 'absent')} in the config"
             for path in sorted(old.keys() | new.keys()) if old.get(path) != new.get(path)]  # fmt: skip
    if lines:
        shown = "\n".join(lines[:20]) + (f"\n  and {len(lines) - 20} more" if len(lines) > 20 else "")
        raise UserError(
            f"checkpoint: {len(lines)} arrays differ from the config.\n{shown}\n"
            "Fix: use the config that the checkpoint was made with, or another directory"
        )


def _leaves(tree: Any) -> dict[str, str]:
    """Path -> type and shape, with the paths as they are in a checkpoint: names and numbers."""
    flat, _ = jax.tree.flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape") and hasattr(x, "dtype"))
    return {
        "/".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path):
        f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for path, leaf in flat
    }  # fmt: skip
