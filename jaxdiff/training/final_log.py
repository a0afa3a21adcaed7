"""Numbers that are measured after training, in the log and in the choice of checkpoints."""

import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.logged import logged_names
from jaxdiff.training.retention import Retention
from jaxdiff.training.writers import open_writers


def log_final(
    workdir: epath.PathLike, step: int, values: Mapping[str, Any], keep: int, keep_also: Retention | None
):
    """Log numbers and images of the last step, as hooks do before it, and rate its checkpoint.

    The same numbers are logged once, also if this is called again.

    Args:
      values: by name.
      keep, keep_also: as in training.
    """
    folder = epath.Path(workdir).expanduser().resolve()
    scalars = {name for name, value in values.items() if isinstance(value, int | float)}
    if not scalars <= logged_names(folder, step):
        writers = open_writers(folder, step, console=False)
        writers.write(step, values)
        writers.close()
    value = values.get(keep_also.best) if keep_also and keep_also.best else None
    if value is not None and math.isfinite(value):
        with Checkpoints(folder / "checkpoints", keep, keep_also) as checkpoints:
            checkpoints.rate(step, float(value))
