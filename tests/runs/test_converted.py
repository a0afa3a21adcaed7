"""The folder of a converted run: what would destroy it is refused, and it is complete or absent."""

import errno
import os
import pathlib
import re
import shutil

import jax
import pytest

from jaxdiff import config as configs
from jaxdiff import convert
from jaxdiff import train as training
from jaxdiff.errors import RunFailure, UserError
from jaxdiff.runs.draft import draft
from jaxdiff.runs.restore import restore_params
from jaxdiff.runs.workdir import read_config
from jaxdiff.train import train
from tests.commands import DIGITS

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from tests import pipelines


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
    with pytest.raises(
        UserError, match=r"--workdir=.*run: expected a new folder .* got a converted run\. Fix: "
    ):
        training.main(["--config", DIGITS, "--workdir", str(made / "run"), *more])
    assert contents(made) == before


def test_no_other_weights_are_converted_to_its_folder(made):
    before = contents(made)
    words = ["--from", str(made / "sd1" / "unet"), "--config", DIGITS, "--workdir", str(made / "run")]
    with pytest.raises(
        UserError, match=r"--workdir=.*run: expected a new folder .* got a converted run\. Fix: "
    ):
        convert.main(words)
    assert contents(made) == before


def test_settings_that_do_not_fit_leave_the_folder_as_it_is(tmp_path):
    words = ["--config", DIGITS, "--workdir", str(tmp_path / "run"), "--config.steps=10"]
    with pytest.raises(UserError, match="warmup_steps"):
        training.main([*words, "--config.optimizer.schedule.warmup_steps=10"])
    assert not (tmp_path / "run").exists()


def test_a_run_without_parameters_to_train_is_refused(made, tmp_path):
    experiment = configs.build(read_config(str(made / "run")))
    with pytest.raises(
        UserError, match=r"config\.task\.pretrained=.*: expected parameters to train, got none\. Fix"
    ):
        train(experiment, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_converted_run_has_no_steps(made):
    run = str(made / "run")
    experiment = configs.build(read_config(run))
    mesh = experiment.mesh.make()
    assert not restore_params(experiment, run, mesh)
    with pytest.raises(
        UserError, match=r"--workdir=.*run:5.*: expected a run with checkpoints, .* Fix: leave out"
    ):
        restore_params(experiment, run, mesh, step=5)


def refused(match, *words):
    with pytest.raises(UserError, match=match):
        convert.main([str(word) for word in words])


def test_only_the_conversion_is_copied_from_a_base(made, tmp_path):
    base = shutil.copytree(made / "run", tmp_path / "base")
    for name in ("metrics.jsonl", "run.lock", "tensorboard/events", ".evaluation.partial"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("x")
    unet = made / "sd1" / "unet" / "diffusion_pytorch_model.safetensors"
    convert.main(["--from", str(unet), "--base", str(base), "--workdir", str(tmp_path / "new")])
    files = {
        str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*") if path.is_file()
    }
    assert files == {
        str(path.relative_to(made / "run")) for path in (made / "run").rglob("*") if path.is_file()
    }
    refused("--workdir=.*: expected a folder outside --base, got one in it. Fix: ",
            "--from", unet, "--base", base, "--workdir", base / "inner")  # fmt: skip
    (base / "checkpoints" / "5").mkdir(parents=True)
    refused("--base=.*: expected a converted run as it was made, got one with checkpoints. Fix: ",
            "--from", unet, "--base", base, "--workdir", tmp_path / "newer")  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "new"]


def test_a_place_that_is_taken_is_refused_before_weights_are_read(tmp_path):
    """The weights are damaged: whoever reads them says so."""
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"damaged")
    (tmp_path / "taken").mkdir()
    refused("path=.*: expected", "--from", weights, "--workdir", tmp_path / "taken")
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    refused("--workdir=.*: expected a new folder, got one with 'notes.txt'. Fix: ",
            "--from", weights, "--workdir", tmp_path / "taken")  # fmt: skip
    refused("--workdir=.*: expected a new folder, got Not a directory. Fix: ",
            "--from", weights, "--workdir", weights)  # fmt: skip
    refused("--workdir=gs://.*: expected a folder on this machine, got an address. Fix: ",
            "--from", weights, "--workdir", "gs://bucket/run")  # fmt: skip


def test_room_is_made_sure_of_before_writing(made, tmp_path, monkeypatch):
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**5))
    refused("--workdir=.*: expected .* of free space, got 0 MB. Fix: ",
            "--from", made / "sd1", "--workdir", tmp_path / "run")  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_meanwhile_is_a_failure_of_the_folder(made, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        RunFailure, match=r"--workdir=.*/run: expected .*, got No space left on device\. Fix: "
    ):
        convert.main(["--from", str(made / "sd1"), "--workdir", str(tmp_path / "run")])
    assert not list(tmp_path.iterdir())


def test_drafts_of_killed_processes_are_removed_and_those_in_use_stay(made, tmp_path):
    names = {
        "killed": ".run.0123456789ab.partial", "other run": ".run2.0123456789ab.partial",
        "other name": ".run.notes.partial", "file": ".run.0123456789cd.partial",
    }  # fmt: skip
    for kind, name in names.items():
        (tmp_path / name).write_text("x") if kind == "file" else (tmp_path / name / "frozen").mkdir(
            parents=True
        )
    with draft(str(tmp_path / "run"), 0) as used:
        assert not (tmp_path / names.pop("killed")).exists()
        convert.main(["--from", str(made / "sd1"), "--workdir", str(tmp_path / "run")])
        assert used.exists()
        shutil.rmtree(tmp_path / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"run", *names.values()}


def test_of_several_processes_the_first_one_writes(made, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    convert.main(["--from", str(made / "sd1"), "--workdir", str(tmp_path / "run")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mode", "ignored"),
    {
        "--to out": "--lora a, --prediction v, --tokenizer t, --base b, --weights trained, --attention-order new, "
                    "--config c.py, --config.seed=1",
        "--from sd1 --config c.py": "--lora a, --prediction v, --tokenizer t, --base b",
        "--from sd1 --base b": "--lora a, --prediction v, --tokenizer t, --attention-order new, --config.seed=1",
        "--from sd1": "--attention-order new",
    }.items(),
)  # fmt: skip
def test_flags_without_effect_are_refused(mode, ignored):
    for words in ignored.split(", "):
        flag = re.split("[ =]", words)[0]
        refused(f"{flag}=: expected flags that --.* uses, got {flag}. Fix: ",
                *mode.split(), *words.split(), "--workdir", "run")  # fmt: skip


def test_what_is_no_whole_model_is_named(made, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    sd1, whole = made / "sd1", "give the folder that has model_index.json"
    expected = {
        "/nope": "got none",
        made / "run": "got a run of jaxdiff. Fix: use it as --workdir",
        sd1 / "unet": f"got the U-Net of one alone. Fix: give the folder of the whole model, {sd1},",
        sd1
        / "unet"
        / "diffusion_pytorch_model.safetensors": "got a file of other tensors. Fix: .*--base RUN",
        sd1 / "vae": "got AutoencoderKL of diffusers. Fix: ",
        tmp_path / "other": "got FluxPipeline of diffusers. Fix: ",
        tmp_path / "photos": f"got a folder with cat.png. Fix: {whole}",
        tmp_path / "empty": f"got an empty folder. Fix: {whole}",
    }
    for place, text in expected.items():
        refused(f"--from={place}: expected .*{text}", "--from", place, "--workdir", tmp_path / "run")
    assert not (tmp_path / "run").exists()
