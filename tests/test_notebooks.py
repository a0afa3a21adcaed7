"""The notebooks run from the first cell to the last, and stored outputs are those of one complete run."""

import base64
import io
import os
import pathlib
import re

import pytest
from PIL import Image

from tests import pipelines

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = pathlib.Path(__file__).parent.parent / "docs/notebooks"
NOTEBOOKS = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
OF_DOWNLOADS = "stable_diffusion"
"""The notebook whose weights are the reader's own: it stores no outputs, and runs here with a tiny pipeline."""

TRAINED = [name for name in NOTEBOOKS if name != OF_DOWNLOADS]
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


def test_there_are_four_notebooks():
    assert set(NOTEBOOKS) == {"conditioning_and_guidance", "lora", "quickstart", "stable_diffusion"}


def execute(notebook, folder):
    """Run all cells in a folder; an error in a cell is raised."""
    quick = {"JAX_NUM_CPU_DEVICES": "1", "PYTHONWARNINGS": "ignore"}
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources)
    client.execute(env={**os.environ, **quick})


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_notebook_runs(name):
    notebook = read(name)
    assert {"STEPS", "network"} <= shortened(notebook)
    execute(notebook, FOLDER)
    assert len(figures(notebook)) == len(figures(read(name)))


@pytest.mark.parametrize("name", TRAINED)
def test_stored_outputs_are_one_run_without_errors_or_traces_of_a_machine(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = code(notebook)
    assert not any("%%capture" in cell.source for cell in cells)  # it hides the errors of a cell
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


def test_the_notebook_of_downloads_stores_no_outputs_and_names_the_download_first():
    notebook = read(OF_DOWNLOADS)
    nbformat.validate(notebook)
    assert notebook.metadata == read(TRAINED[0]).metadata
    assert "No outputs are stored here: the weights are your own." in notebook.cells[0].source
    first, *_ = cells = code(notebook)
    assert first.source.startswith("DOWNLOAD = ")
    assert not [cell for cell in cells if cell.outputs or cell.execution_count]


@pytest.mark.slow
def test_the_notebook_of_downloads_runs_with_a_tiny_pipeline(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    pipelines.write("sd1", tmp_path / "stable-diffusion-v1-5")
    pipelines.write_lora(tmp_path / "style.safetensors")
    levels = {f"{side}_block_out_channels": (8, 8) for side in ("encoder", "decoder")}
    counts = {f"num_{side}_blocks": (1, 1) for side in ("encoder", "decoder")}
    diffusers.AutoencoderTiny(**levels, **counts).save_pretrained(tmp_path / "taesd")
    notebook = read(OF_DOWNLOADS)
    small = {"STEPS": "6", "SCALES": "[1.0, 3.0]", "STRENGTHS": "[0.5, 0.9]", "SAMPLERS": '["euler", "ddim"]'}
    for cell in code(notebook):
        for name, value in list(small.items()):
            cell.source, count = re.subn(
                rf"^{name} = .*", f"{name} = {value}", cell.source, flags=re.MULTILINE
            )
            if count:
                del small[name]
    assert not small
    execute(notebook, tmp_path)
    shown = figures(notebook)
    assert len(shown) == 14
    for figure in shown:
        with Image.open(io.BytesIO(figure)) as image:
            assert len(image.getcolors(10**6)) > 100


def figures(notebook):
    """The PNG files that cells display."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    found = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [base64.b64decode(data) for data in found]
