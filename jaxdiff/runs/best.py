"""The best checkpoint of a run, by the metric that its config keeps checkpoints by."""

from etils import epath

from jaxdiff import config as configs
from jaxdiff.errors import UserError, expect
from jaxdiff.runs.stages import read_model_config
from jaxdiff.training.retention import Retention, rated

FLAG = "--step"


def best_step(workdir: str) -> int:
    """The step of the best checkpoint, see `Retention.best`; of equal ones the earlier.

    Raises:
      UserError: the run keeps no checkpoints by a metric, or has measured none of them yet.
    """
    block, fix = read_model_config(workdir).get("keep_also"), "train with it, or give a number"
    retention = Retention() if block is None else configs.build(block)
    assert isinstance(retention, Retention)
    expected = "a run with keep_also=Retention(best=...)"
    expect(retention.best is not None, FLAG, "best", expected, fix, "a run without it")
    found = retention.ranked(rated(epath.Path(workdir).expanduser() / "checkpoints", retention))
    if not found:
        raise UserError(
            f"{FLAG}='best': expected a checkpoint of {workdir} with the metric {retention.best}, got none. "
            "Fix: name a number that the run logs in keep_also.best, train further, or give a step"
        )
    return found[0].step
