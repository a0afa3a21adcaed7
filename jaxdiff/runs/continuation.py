"""What may change when a run continues: all that changes neither what is learned nor from which examples."""

import logging
from typing import Any

from etils import epath

from jaxdiff import config as configs
from jaxdiff.config.blocks import TARGET, resolve
from jaxdiff.config.overrides import is_default
from jaxdiff.errors import UserError, expect

_log = logging.getLogger(__name__)

FREE = (
    "steps",
    "log_every",
    "checkpoint_every",
    "keep",
    "keep_also",
    "sample_every",
    "sampling",
    "recipes",
    "evaluation",
    "mesh",
    "test_data",
    "accumulation",
    "data.threads",
    "data.prefetch",
    "data.cache",
    "data.encoded",
    "data.max_damaged",
    "fault_tolerance.spikes",
    "fault_tolerance.hang",
)
"""Fields of duration, outputs, devices, speed and memory."""

SAME_RESULT = ("remat",)
"""Fields of parts, wherever they are, that change speed and memory only."""

SCHEDULE = "optimizer.schedule"

LEAP, LEAST = 0.01, 1e-6
"""Least changes of the learning rate that count as a leap and as a change, as fractions of its peak."""

COMPARED = 20
"""Number of later steps at which the learning rates of two schedules are compared."""


def latest_step(workdir: epath.Path) -> int | None:
    """Step of a run's newest checkpoint; None without one. Nothing binds the folder before the first checkpoint."""
    folder = workdir / "checkpoints"
    steps = (path.name for path in folder.iterdir()) if folder.exists() else ()
    return max((int(name) for name in steps if name.isdigit()), default=None)


def check_config(stored: Any, config: Any, workdir: str, step: int, has_data: bool) -> None:
    """Raise `UserError` unless a run can continue with a config.

    Args:
      stored: config of the run.
      config: config to continue with.
      workdir: the run's folder.
      step: of its newest checkpoint.
      has_data: whether the run has stored what its data are, so that they can be found elsewhere.
    """
    changed = {
        name: values
        for name, values in configs.differences(stored, config).items()
        # A field that the stored config lacks, with its default value, changes nothing.
        if not (values[0] == "absent" and is_default(config, name))
        and not _is_free(name, config, has_data)
        and not (_goes_on(stored, config, step) and _is_in(name, SCHEDULE))
    }
    if changed:
        listed = "; ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in changed.items())
        raise UserError(
            f"--workdir={workdir}: expected an empty folder or a run with this config, "
            f"got a run with another config ({listed}). Fix: use another --workdir, or the same config"
        )


def check_steps(stored: Any, config: Any, workdir: str, step: int, new_schedule: bool) -> None:
    """Say what another number of steps means, or raise `UserError` where the learning rate would leap after the end.

    Args:
      stored, config, workdir, step: as in `check_config`.
      new_schedule: whether the user has named the schedule for steps after the end of the run's.
    """
    if step <= config.steps != _steps(stored, config):
        allowed = new_schedule or not _goes_on(stored, config, step)
        _check_schedule(stored, config, workdir, step, allowed)


def _goes_on(stored: Any, config: Any, step: int) -> bool:
    """Whether a run that has ended gets more steps."""
    return step >= _steps(stored, config) < config.steps


def _steps(stored: Any, config: Any) -> int:
    return stored.get("steps", config.steps)


def _is_free(name: str, config: Any, has_data: bool) -> bool:
    if any(_is_in(name, free) for free in FREE) or name.rpartition(".")[2] in SAME_RESULT:
        return True
    is_data = _is_in(name, "data.source")
    return _is_place(name, config) and (has_data if is_data else True)


def _is_in(name: str, field: str) -> bool:
    return name == field or name.startswith((f"{field}.", f"{field}["))


def _is_place(name: str, config: Any) -> bool:
    """Whether a field says where something lies whose contents are compared; see `data.pipeline.Recorded`."""
    *parents, field = name.replace("[", ".").replace("]", "").split(".")
    block = config
    try:
        for part in parents:
            block = block[int(part)] if part.isdigit() else block[part]
        return field in getattr(resolve(block[TARGET]), "places", ())
    except (LookupError, TypeError):  # the block is absent, or a plain value
        return False


def _check_schedule(stored: Any, config: Any, workdir: str, step: int, allowed: bool) -> None:
    """Say that a schedule that depends on the number of steps leaps, or raise `UserError` unless this is allowed."""
    block = config.optimizer.get("schedule")
    if block is None or configs.differences(stored.optimizer.get("schedule"), block):
        return
    schedule = configs.build(block, path=f"config.{SCHEDULE}")
    old, new = (schedule(1.0, steps) for steps in (_steps(stored, config), config.steps))
    before, after = (float(rate(step)) for rate in (old, new))
    if abs(after - before) <= LEAP:
        _say_change(old, new, stored, config, step)
        return
    leap = f"a learning rate that leaps from {before:.2g} to {after:.2g} of its peak at step {step}"
    expect(
        allowed,
        "config.steps",
        config.steps,
        f"a schedule for the steps after {stored.steps}, where the run's has ended",
        f"name one, --config.{SCHEDULE}='{_written(block)}' for example, or use --from-workdir {workdir}",
        leap,
    )
    _log.warning("steps=%d instead of %d: %s", config.steps, stored.steps, leap)


def _say_change(old: Any, new: Any, stored: Any, config: Any, step: int) -> None:
    """Say that the learning rate of later steps depends on their number, if it does."""
    end = min(_steps(stored, config), config.steps)
    later = range(step, end + 1, max((end - step) // COMPARED, 1))
    if any(abs(float(old(at)) - float(new(at))) > LEAST for at in later):
        text = (
            "steps=%d instead of %d: the learning rates from step %d on are those of a schedule of %d steps, "
            "so the result is not that of a run with these steps from the start"
        )
        _log.warning(text, config.steps, stored.steps, step, config.steps)


def _written(block: Any) -> str:
    """A block as the command line takes it."""
    fields = ", ".join(f"{name}={block[name]!r}" for name in block if name != TARGET)
    return f"{block[TARGET]}({fields})"
