"""The folder of a converted run: what would destroy it is refused, and it is complete or absent."""

import dataclasses
import pathlib
import shutil

import jax
import pytest

from jaxdiff import config as configs
from jaxdiff import convert
from jaxdiff import train as training
from jaxdiff.errors import UserError
from jaxdiff.runs.restore import restore_params
from jaxdiff.runs.workdir import read_config
from jaxdiff.train import train
from jaxdiff.training.checkpoint import Checkpoints
from tests.commands import DIGITS

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from tests import pipelines  # noqa: E402


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a tiny pipeline and the run that it is converted to."""
    folder = tmp_path_factory.mktemp("converted")
    pipelines.write("sd1", folder / "sd1")
    convert.main(["--from", str(folder / "sd1"), "--workdir", str(folder / "run")])
    return folder


def contents(folder: pathlib.Path):
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("more", [(), ("--restart",)])
def test_a_converted_run_is_not_trained_in_its_folder(made, more):
    before = contents(made)
    with pytest.raises(UserError, match=r"--workdir=.*run: expected a new folder .* got a converted run\. Fix: "):
        training.main(["--config", DIGITS, "--workdir", str(made / "run"), *more])
    assert contents(made) == before


def test_no_other_weights_are_converted_to_its_folder(made):
    before = contents(made)
    words = ["--from", str(made / "sd1" / "unet"), "--config", DIGITS, "--workdir", str(made / "run")]
    with pytest.raises(UserError, match=r"--workdir=.*run: expected a new folder .* got a converted run\. Fix: "):
        convert.main(words)
    assert contents(made) == before


def test_settings_that_do_not_fit_leave_the_folder_as_it_is(tmp_path):
    words = ["--config", DIGITS, "--workdir", str(tmp_path / "run"), "--config.steps=10"]
    with pytest.raises(UserError, match="warmup_steps"):
        training.main([*words, "--config.optimizer.schedule.warmup_steps=10"])
    assert not (tmp_path / "run").exists()


def test_a_run_without_parameters_to_train_is_refused(made, tmp_path):
    experiment = configs.build(read_config(str(made / "run")))
    with pytest.raises(UserError, match=r"config\.task\.pretrained=.*: expected parameters to train, got none\. Fix"):
        train(experiment, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_converted_run_has_no_steps(made):
    run = str(made / "run")
    experiment = configs.build(read_config(run))
    mesh = experiment.mesh.make()
    assert not restore_params(experiment, run, mesh)
    with pytest.raises(UserError, match=r"--workdir=.*run:5.*: expected a run with checkpoints, .* Fix: leave out"):
        restore_params(experiment, run, mesh, step=5)
