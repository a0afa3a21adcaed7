"""Published pipelines that are damaged, quantised or none of Stable Diffusion: refused, in one line that names where."""

import json
import shutil
import warnings

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxdiff.errors import UserError
from jaxdiff.interop import published
from jaxdiff.interop.safetensors_files import write_safetensors
from jaxdiff.runs.published import convert
from tests import pipelines

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipelines.write("sd1", tmp_path_factory.mktemp("pipelines") / "whole")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def change(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def check_refused(folder, *texts):
    """The conversion is refused in one line with these texts, and writes nothing."""
    with pytest.raises(UserError) as error:
        convert(published.find(folder), str(folder.parent / "run"))
    message = error.value.message
    assert ": expected " in message and ", got " in message and "Fix: " in message
    assert "\n" not in message
    for text in texts:
        assert text in message
    assert not (folder.parent / "run").exists()
    return error.value


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8"])
def test_quantised_tensors_are_named(dtype, folder):
    tensors = load_file(folder / WEIGHTS)
    kind = getattr(ml_dtypes, dtype, None) or np.dtype(dtype)
    small = {name: array.astype(kind) for name, array in tensors.items() if name.startswith("conv_in.")}
    write_safetensors(folder / WEIGHTS, tensors | small)
    check_refused(folder, f"got {dtype} in conv_in.", " and 1 more tensors.")


def test_tensors_that_are_missing_are_not_the_configs_fault(folder):
    tensors = load_file(folder / WEIGHTS)
    bias = tensors.pop("conv_in.bias")
    write_safetensors(folder / WEIGHTS, tensors | {"conv_in.bia": bias})
    error = check_refused(folder, "Fix: give the files of one model, complete and as it was published")
    assert any("conv_in.bias" in row for row in error.details)


@pytest.mark.parametrize(
    "file", ["unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json",
             "model_index.json"],
)  # fmt: skip
@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_broken_file_of_settings_is_named(file, content, folder):
    (folder / file).write_text(content)
    check_refused(folder, f"path={str(folder / file)!r}")
    if file.startswith("unet"):
        with pytest.raises(UserError, match=file):
            published.is_published(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_missing_config_is_named(part, folder):
    (folder / part / "config.json").unlink()
    check_refused(folder, f"path={str(folder / part / 'config.json')!r}")


@pytest.mark.parametrize("kind", ["KandinskyV22Pipeline", ["mine", "AltDiffusionPipeline"], 3])
def test_a_pipeline_of_another_model_is_refused(kind, folder):
    change(folder / "model_index.json", _class_name=kind)
    check_refused(folder, "expected a pipeline of Stable Diffusion", str(kind), "model_index.json")


def test_a_folder_without_scheduler_says_what_is_assumed(folder, caplog):
    shutil.rmtree(folder / "scheduler")
    published.find(folder)
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("jaxdiff")]
    assert str(folder / "scheduler" / "scheduler_config.json") in line and "assumed" in line
