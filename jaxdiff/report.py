"""Make a page of runs: configs, curves, sample grids, evaluations and sweeps in one HTML file.

    python -m jaxdiff.report --workdir runs/digits
    python -m jaxdiff.report --workdir runs/digits runs/digits_long --out digits.html

The file needs no network, no server and no script.
"""

import pathlib
from collections.abc import Sequence

from jaxdiff.cli import app as command
from jaxdiff.cli import output
from jaxdiff.errors import expect

DESCRIPTION = "Make a page of runs: configs, curves, sample grids, evaluations and sweeps in one HTML file."
EPILOG = """\
A part that a run lacks is a sentence on the page. Figures of several runs stand side by side where they are comparable;
the page names what makes others incomparable."""

FILE = "report.html"
"""The page in the folder of the first run, without --out."""


def parser() -> command.Parser:
    """The flags of the command."""
    flags = command.Parser(description=DESCRIPTION, epilog=EPILOG)
    flags.add_argument("--workdir", nargs="+", required=True, metavar="FOLDER", help="folders of runs")
    flags.add_argument(
        "--sweep",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="sweeps with an --out outside the runs' folders",
    )
    flags.add_argument("--out", default=None, metavar="FILE.html", help=f"the page (default: WORKDIR/{FILE})")
    flags.add_argument("--overwrite", action="store_true", help="replace an earlier page of --out")
    return flags


def main(argv: Sequence[str]) -> None:
    flags, overrides = parser().parse(argv)
    expect(not overrides, "--config", overrides, "no changes of the run's config", "omit them")

    from jaxdiff.reporting.page import page
    from jaxdiff.reporting.run_files import check_sweep, read_runs

    runs, sweeps = read_runs(flags.workdir), [check_sweep(folder) for folder in flags.sweep]
    out = _out(flags.workdir[0], flags.out, flags.overwrite)
    out.check()
    data = page(runs, sweeps).encode(errors="replace")
    out.check_space(len(data))
    out.write(lambda draft: draft.write_bytes(data))
    print(f"wrote {out.path}, {output.readable(len(data))}")


def _out(workdir: str, text: str | None, overwrite: bool) -> output.Output:
    """The place of the page. In the run's own folder an earlier page is replaced, as an evaluation is."""
    if text is None:
        return output.page("--workdir", str(pathlib.Path(workdir) / FILE), overwrite=True)
    return output.page("--out", text, overwrite)


if __name__ == "__main__":
    command.run(main)
