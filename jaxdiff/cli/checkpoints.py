"""The flag for a checkpoint of a run: its step, or the best one by a metric. Imports nothing heavy."""

from jaxdiff.cli.app import Parser
from jaxdiff.errors import expect

BEST = "best"


def add_step(flags: Parser) -> None:
    """Add the flag ``--step``."""
    help_text = f"which checkpoint, or {BEST}: by the metric of the run's keep_also (default: the newest)"
    flags.add_argument("--step", default=None, metavar="STEP", help=help_text)


def step_of(text: str | None, workdir: str) -> int | None:
    """The step that ``--step`` names for a run; None for the newest.

    Raises:
      UserError: it is neither a number nor `BEST`, or the run has no best checkpoint.
    """
    if text is None:
        return None
    if text != BEST:
        whole = text.isascii() and text.isdecimal()
        expect(whole, "--step", text, f"a whole number or {BEST}", "give the step of a checkpoint")
        return int(text)

    from jaxdiff.runs.best import best_step

    found = best_step(workdir)
    print(f"the best checkpoint is that of step {found}")
    return found
