"""The report of a sweep from its folder alone: nothing is sampled, and no run is read."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxdiff.errors import UserError
from jaxdiff.sweeps.measures import DIVERSITY, QUALITY, Measure, measure, paths
from jaxdiff.sweeps.records import REAL, Records, of_one_sweep
from jaxdiff.sweeps.report import JSON, SweepReport


def read(folder: pathlib.Path) -> SweepReport:
    """The report of the latest sweep in a folder: the records with the metrics and the run of the last line.

    The values that stand for quality and diversity are those of ``report.json``, or else the usual ones.

    Raises:
      UserError: there is no record of a setting, or a line is damaged.
    """
    found = Records(folder).found
    settings = [record for record in found.values() if record["key"] != REAL]
    last = settings[-1] if settings else {"scored": ""}
    real = found.get((REAL, last["scored"]))
    if real is None:
        raise UserError(f"sweep={folder}: expected a finished setting, got none. Fix: run the sweep again")
    quality, diversity = _measures(folder, real["values"])
    return SweepReport(of_one_sweep(settings, last["scored"], last.get("base")), real, quality, diversity)


def _measures(folder: pathlib.Path, values: Mapping[str, Any]) -> tuple[Measure, Measure]:
    try:
        stored = json.loads((folder / JSON).read_text())
        found = Measure(**stored["quality"]), Measure(**stored["diversity"])
        if {each.path for each in found} <= {*paths(values)}:  # else they are of a sweep with other metrics
            return found
    except (OSError, ValueError, KeyError, TypeError):  # the sweep was stopped before its report
        pass
    return measure("--quality", None, QUALITY, values), measure("--diversity", None, DIVERSITY, values)
