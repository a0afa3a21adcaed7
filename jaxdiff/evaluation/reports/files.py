"""Reports as text and as files."""

import io
import json
from collections.abc import Sequence

from etils import epath
from PIL import Image

from jaxdiff.evaluation.protocols import Report

LABEL_WIDTH, VALUE_WIDTH = 40, 14


def table(report: Report) -> str:
    """Caption and table for a terminal."""
    return "\n".join([*report.caption, "", *map(_line, report.table)])


def write(report: Report, workdir: str) -> None:
    """Write ``evaluation.json`` and ``evaluation.png`` into `workdir`, atomically each."""
    png = io.BytesIO()
    Image.fromarray(report.figure).save(png, "PNG", optimize=True)
    text = json.dumps(report.values, indent=1, allow_nan=False) + "\n"
    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (("evaluation.json", text.encode()), ("evaluation.png", png.getvalue())):
        part = folder / f".{name}.part"
        part.write_bytes(data)
        part.replace(folder / name)


def _line(row: Sequence[str]) -> str:
    return (row[0].ljust(LABEL_WIDTH) + "".join(value.rjust(VALUE_WIDTH) for value in row[1:])).rstrip()
