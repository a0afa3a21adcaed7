"""Reports as files."""

import io
import json
import os

from etils import epath
from PIL import Image

from jaxdiff.evaluation.protocols import Report


def write(report: Report, workdir: str | os.PathLike[str]) -> None:
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
