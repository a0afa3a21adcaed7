"""Published pipelines that are damaged, quantised or none of Stable Diffusion: refused in one line that says where."""

import json
import shutil
import warnings

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
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
    for text in (": expected ", ", got ", "Fix: ", *texts):
        assert text in message
    assert "\n" not in message
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
    assert str(folder / "scheduler" / "scheduler_config.json") in line
    assert "assumed" in line


WRONG = {
    "vae/config.json": {
        "scaling_factor": [None, "a", 0], "block_out_channels": [3, ["32"]], "layers_per_block": ["1", True],
        "shift_factor": ["a"], "latents_mean": [0.5], "down_block_types": [3],
    },
    "text_encoder/config.json": {
        "num_attention_heads": ["1"], "layer_norm_eps": ["a"], "text_config": [[1]], "hidden_act": [[1]],
    },
    "scheduler/scheduler_config.json": {
        "num_train_timesteps": ["1000", 0], "beta_start": ["a"], "beta_schedule": [["x"]], "_class_name": [["x"]],
        "_use_default_values": [None], "trained_betas": [["a"]],
    },
    "unet/config.json": {"sample_size": ["16", [16], [16, 24, 3], 0, 1.5]},
}  # fmt: skip
CASES = [
    (file, field, value) for file, fields in WRONG.items() for field in fields for value in fields[field]
]


@pytest.mark.spread(5)
@pytest.mark.parametrize(("file", "field", "value"), CASES)
def test_values_of_other_types_are_named_with_their_file(file, field, value, folder):
    change(folder / file, **{field: value})
    check_refused(folder, f"{field}={value!r}: expected ", file.rpartition("/")[2])


@pytest.mark.slow
def test_latents_that_are_not_square_make_such_images(folder):
    change(folder / "unet" / "config.json", sample_size=[16, 24])
    run = str(folder.parent / "run")
    convert(published.find(folder), run)
    assert Generator.load(run).image_shape == (32, 48, 3)
    pipelines.export_folder(run, folder.parent / "out")
    config = json.loads((folder.parent / "out" / "unet" / "config.json").read_text())
    assert config["sample_size"] == [16, 24]
