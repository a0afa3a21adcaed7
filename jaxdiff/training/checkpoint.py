"""Checkpoints of a run: written in the background, verified when read, complete or ignored after any interruption.

``<directory>/<step>/state`` holds one `TrainState` in Orbax's format. Orbax writes to a temporary name. The manifest of
`jaxdiff.training.integrity` is the last file, and then the folder gets its name. So a killed save leaves earlier
checkpoints intact.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from jaxdiff.distributed.first_process import in_first
from jaxdiff.errors import RunFailure, UserError, expect, reason
from jaxdiff.training import integrity, storage
from jaxdiff.training.integrity import Damaged
from jaxdiff.training.retention import Retention, Saved

CORRUPT = "corrupt"
"""Suffix of the folder of a damaged checkpoint."""

RENAMED = {"task_state": "memory", "extra_emas": "others"}
"""Fields of `TrainState` -> their names in checkpoints of jaxdiff 0.1.0."""

NETWORKS, OPTIMIZER = ("params", "ema", "extra_emas"), "opt_state"
"""Fields of `TrainState` without NaN. A task state may hold any numbers."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints in one directory.

    Args:
      directory: created by the first save.
      keep: number of latest checkpoints to keep. An older one is deleted only after its successor is complete on disk.
      keep_also: further checkpoints that stay.
      read_only: for sampling, while a run may still be writing.
      verify: compare a checkpoint's files with its manifest before they are read; None for the environment's choice,
        see `integrity.wanted`.
      files: texts stored with each checkpoint, by file name, such as the run's config.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        keep: int = 3,
        keep_also: Retention | None = None,
        *,
        read_only: bool = False,
        verify: bool | None = None,
        files: Mapping[str, str] | None = None,
    ):
        expect(keep >= 1, "keep", keep, "at least 1", "keep the latest one, from which a run continues")
        storage.silence()
        self.directory = epath.Path(directory).expanduser().resolve()  # Orbax fails late on a relative path
        self._keep, self._keep_also = keep, keep_also or Retention()
        self._read_only = read_only
        self._verify = integrity.wanted() if verify is None else verify
        self._saving: int | None = None
        self._rated: dict[int, float] = {}
        self._checkpointer = ocp.AsyncCheckpointer(storage.Handler(files or {}))
        if not read_only:
            in_first(lambda: storage.delete_drafts(self.directory))

    def steps(self) -> list[int]:
        """The steps with a complete checkpoint, in order; their contents are not verified."""
        return [step for step in self._numbered() if integrity.is_complete(self._folder(step))]

    def latest(self) -> int | None:
        """The last of `steps`, or None."""
        return max(self.steps(), default=None)

    def exist(self) -> bool:
        """Whether there are checkpoints, damaged ones included."""
        return bool(self._numbered() or self._corrupt())

    def newest(self, read: Callable[[int], T]) -> tuple[int, T] | None:
        """The newest intact checkpoint: its step and the result of `read(step)`; None without any checkpoint.

        A damaged one is logged as a warning and renamed to STEP.corrupt (with `read_only` only logged), and the one
        before it is read.

        Raises:
          RunFailure: there are checkpoints, and none is intact. None of them is renamed.
        """
        damaged: dict[int, Damaged] = {}
        for step in reversed(self._numbered()):
            try:
                self._verify_files(step)
                found = read(step)
            except UserError:
                if self._folder(step).exists():
                    raise
                continue
            except Damaged as error:
                if self._folder(step).exists():  # else a run at work has deleted it meanwhile
                    damaged[step] = error
                continue
            for bad, error in damaged.items():
                self._set_aside(bad, error, f"using step {step}")
            return step, found
        if not damaged and not self._corrupt():
            return None
        listed = [str(error) for error in damaged.values()] + [str(path) for path in self._corrupt()]
        raise RunFailure(
            f"checkpoints={self.directory}: expected at least one that is intact, got {len(listed)} damaged: "
            f"{'; '.join(listed)}. Fix: restore one from a copy, or train anew with --restart, which keeps these files"
        )

    def verify(self, step: int) -> None:
        """Compare the files of `step` with its manifest; in a run of several processes the first one does.

        Raises:
          Damaged: they differ, or the checkpoint is incomplete; the message names the file.
          UserError: there is no such step.
        """
        self._expect(step, self._numbered())
        self._verify_files(step)

    def _verify_files(self, step: int) -> None:
        folder = self._folder(step)

        def check() -> None:
            if self._verify:
                integrity.verify(folder)
            if not integrity.is_complete(folder):
                raise Damaged(f"{folder}: not a complete checkpoint")

        in_first(check, raises=Damaged)

    def save(self, step: int, state: Any) -> bool:
        """Start to save `state`, which may be donated as soon as this returns.

        A state that is not finite, or whose optimizer holds NaN, is not saved, since it would replace a good one. An
        existing step stays as it is. An earlier save that failed, on a full disk for example, is logged now; older
        checkpoints and this one are safe.

        Returns:
          Whether a save was started.

        Raises:
          RunFailure: the save could not be started.
        """
        try:
            self.wait()
        except RunFailure as error:
            _log.warning("%s; training goes on", error)
        folder = self._folder(step)
        if step in self.steps():
            return False
        if not _is_sound({name: getattr(state, name, ()) for name in (*NETWORKS, OPTIMIZER)}):
            _log.warning("step %d: the state is not finite and was not saved", step)
            return False
        self._set_aside(step, Damaged(f"{folder}: not a complete checkpoint"), "saving it anew")
        self._saving = step
        with self._reported(step):
            self._checkpointer.save(folder, args=storage.save_args(state))
        return True

    def wait(self) -> None:
        """Wait until all saves are complete on disk, and delete checkpoints that are no longer kept.

        Raises:
          RunFailure: the last save failed. What it left is removed.
        """
        if self._saving is None:
            return
        step, self._saving = self._saving, None
        with self._reported(step):
            self._checkpointer.wait_until_finished()
            self._checkpointer.check_for_errors()
        try:
            self._store_ratings()
        except OSError as error:  # the next save tries again
            _log.warning("%s: old checkpoints were not deleted (%s)", self.directory, reason(error))

    def rate(self, step: int, value: float) -> None:
        """Record the metric of a step for `Retention.best`; stored in its checkpoint once that is complete.

        A step without a checkpoint, complete or on its way, is not rated.
        """
        if step == self._saving or step in self.steps():
            self._rated[step] = value
        if self._saving is None:
            with contextlib.suppress(OSError):  # kept in memory, and stored with the next checkpoint
                self._store_ratings()

    def would_stay(self, step: int, value: float) -> bool:
        """Whether a step with this metric is among the best."""
        rated = {**self._rated, step: value}  # the last one may still be on its way to the disk
        known = {each.step: each for each in self._saved()} | {s: Saved(s, 0.0, v) for s, v in rated.items()}
        return any(each.step == step for each in self._keep_also.ranked(list(known.values())))

    def restore(self, step: int, abstract: Any) -> Any:
        """The state of `step` in the shapes, types and shardings of `abstract` (of this or any other mesh).

        Raises:
          UserError: the checkpoint has other leaves, or leaves of other shapes or types.
          Damaged: its files cannot be read, or hold the state of another step, or numbers that are not finite.
        """
        names = [field.name for field in dataclasses.fields(abstract)]
        found = self._restore(step, {name: getattr(abstract, name) for name in names}, everything=True)
        state = dataclasses.replace(abstract, **found)
        if int(state.step) != step:
            raise Damaged(
                f"{self._folder(step)}: expected the state of step {step}, got that of {int(state.step)}"
            )
        return state

    def restore_part(self, step: int, name: str, abstract: Any) -> Any:
        """One field of the saved state, ``"ema"`` or ``"params"``; the rest is not read."""
        return self._restore(step, {name: abstract}, everything=False)[name]

    def close(self) -> None:
        """Wait for unfinished saves, and stop the threads."""
        try:
            self.wait()
        except RunFailure as error:
            _log.warning("%s", error)
        self._checkpointer.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def metadata(self, step: int) -> Any:
        """The tree of the state of `step`, with shapes and dtypes in place of arrays."""
        self._expect(step, self.steps())
        return storage.metadata(self._folder(step))

    def _restore(self, step: int, fields: dict[str, Any], everything: bool) -> dict[str, Any]:
        with self._unreadable_is_damaged(step):
            saved = self.metadata(step)
        # Fields of a state, under their names in this checkpoint.
        names = {RENAMED[name] if RENAMED.get(name) in saved else name: name for name in fields}
        item = {ours: fields[name] for ours, name in names.items()}
        storage.compare(saved if everything else {name: saved[name] for name in item}, item)
        with self._unreadable_is_damaged(step):
            read = storage.read(self._folder(step), item)
        found = {names[name]: value for name, value in read.items()}
        if not _is_sound(found):
            raise Damaged(f"{self._folder(step)}: expected finite numbers, got NaN or infinite ones")
        return found

    def _expect(self, step: int, steps: list[int]) -> None:
        expected = f"a checkpoint of this step in {self.directory}"
        fix = f"choose from: {', '.join(map(str, steps)) or 'none'}"
        expect(step in steps, "step", step, expected, fix, "none")

    def _folder(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def _numbered(self) -> list[int]:
        """The steps with a folder, complete or not, in order."""
        if not self.directory.exists():
            return []
        names = (path.name for path in self.directory.iterdir())
        return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))

    def _corrupt(self) -> list[epath.Path]:
        return sorted(self.directory.glob(f"*.{CORRUPT}*")) if self.directory.exists() else []

    @contextlib.contextmanager
    def _unreadable_is_damaged(self, step: int) -> Iterator[None]:
        """Turn an error of reading into `Damaged`, unless the files are verified."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if storage.is_of_the_process(error):
                raise
            folder = self._folder(step)
            if self._verify and integrity.read_manifest(folder) is not None:
                raise
            raise Damaged(f"{folder}: not readable ({reason(error)})") from error

    @contextlib.contextmanager
    def _reported(self, step: int) -> Iterator[None]:
        """Turn an error of saving into a `RunFailure` of one line, and remove what it left."""
        try:
            yield
        except Exception as error:
            self._saving = None
            self._rated.pop(step, None)
            with contextlib.suppress(Exception):  # the first error is the one to report
                self._checkpointer.wait_until_finished()  # Orbax may still be writing its metadata
                if jax.process_index() == 0:  # without a barrier: others may have no error
                    storage.delete_drafts(self.directory)
            left = ", ".join(map(str, self.steps())) or "none"
            raise RunFailure(
                f"step {step} was not saved in {self.directory}: {reason(error)}. Checkpoints there: {left}"
            ) from error

    def _saved(self) -> list[Saved]:
        return [self._keep_also.read(self._folder(step), step) for step in self.steps()]

    def _store_ratings(self) -> None:
        """Write the metrics of complete checkpoints next to their states. Then delete what is not kept."""
        complete = set(self.steps())
        for step, value in list(self._rated.items()):
            if step in complete and jax.process_index() == 0:
                self._keep_also.write(self._folder(step), value)
            del self._rated[step]  # without a checkpoint, its save has failed
        self._prune()

    def _prune(self) -> None:
        """Delete the checkpoints that are no longer kept."""
        if jax.process_index() != 0:
            return
        saved = self._saved()
        kept = {each.step for each in saved[-self._keep :]} | self._keep_also.kept(saved)
        for step in (each.step for each in saved if each.step not in kept):
            self.delete(step)

    def delete(self, step: int) -> None:
        """Delete the checkpoint of a step, in one process."""
        storage.delete(self._folder(step))

    def _set_aside(self, step: int, error: Damaged, then: str) -> None:
        """Rename a damaged checkpoint, if there is one, and log a warning."""

        def rename() -> None:
            folder, kept = self._folder(step), ""
            if not folder.exists():
                return
            if not self._read_only:
                path = folder.rename(storage.unused(folder.parent / f"{step}.{CORRUPT}"))
                kept = f"; kept as {path.name}"
            _log.warning("%s%s; %s", error, kept, then)

        in_first(rename)


def _is_sound(fields: Mapping[str, Any]) -> bool:
    networks = [value for name, value in fields.items() if name in NETWORKS]
    return bool(storage.is_sound(networks, fields.get(OPTIMIZER, ())))
