"""The notebooks run from the first cell to the last, and their stored outputs are those of one complete run."""

import base64
import io
import os
import pathlib
import re

import pytest
from PIL import Image

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = pathlib.Path(__file__).parent.parent / "docs/notebooks"
NOTEBOOKS = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
BRIEF = {"STEPS": 10, "SAMPLES": 20, "EACH": 2}
"""Replacements of a notebook's constants: every line runs, and the images are bad."""

LOADED = 'config = configs.load("../../configs/digits.py")\n'
SMALL = """\
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.unet import Level

config.task.denoiser.network.levels = tuple(spec(Level, width=16, blocks=0) for _ in range(2))
config.task.denoiser.network.middle = spec(ResidualMiddle, attention=None)
"""
"""Replaces the network of a notebook's config by one that compiles in a fraction of the time."""

# Warnings of pyzmq and traitlets in this process; the cells run in another one.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")


def read(name):
    return nbformat.read(NOTEBOOKS[name], as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shortened(notebook):
    """Shorten a notebook in place: `BRIEF` constants and a `SMALL` network. Returns the replaced constants."""
    found = set()
    for cell in code(notebook):
        if LOADED in f"{cell.source}\n":
            cell.source = f"{cell.source}\n".replace(LOADED, LOADED + SMALL)
            found |= {"network"}
        for name, value in BRIEF.items():
            cell.source, count = re.subn(
                rf"^{name} = \d+", f"{name} = {value}", cell.source, flags=re.MULTILINE
            )
            found |= {name} if count else set()
    return found


def test_there_are_two_notebooks():
    assert set(NOTEBOOKS) == {"conditioning_and_guidance", "quickstart"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name):
    notebook = read(name)
    assert {"STEPS", "network"} <= shortened(notebook)
    quick = {"JAX_NUM_CPU_DEVICES": "1", "PYTHONWARNINGS": "ignore"}
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute(env={**os.environ, **quick})  # an error in a cell is raised
    assert len(figures(notebook)) == len(figures(read(name)))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_outputs_are_one_run_without_errors_or_traces_of_a_machine(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), (
        "run it from top to bottom"
    )
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert not re.search(
        r"/(home|root|tmp|work|Users)/|\d(s|it)/(it|s)\b|per_second", NOTEBOOKS[name].read_text()
    )
    assert len(figures(notebook)) >= 4
    for figure in figures(notebook):
        assert len(figure) < 100_000, "small figures"
        assert min(Image.open(io.BytesIO(figure)).size) > 30


def figures(notebook):
    """The PNG files that cells display."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    found = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [base64.b64decode(data) for data in found]
