"""The commands as a user runs them, in separate processes: train, kill, resume, sample, evaluate."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import time

import numpy as np
import pytest
from PIL import Image

from jaxdiff import sample
from jaxdiff.config import describe, to_json
from jaxdiff.distributed import runtime
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.samplers.adams import Lms
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver2M
from tests.commands import DIGITS, TINY, digest, metrics, run, start

STEPS = 12
TRAIN = (
    "--config",
    DIGITS,
    *TINY,
    f"--config.steps={STEPS}",
    "--config.checkpoint_every=4",
    "--config.log_every=1",
)


def pixels(path):
    with Image.open(path) as opened:
        return np.asarray(opened)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny uninterrupted run on one device, without evaluation."""
    workdir = tmp_path_factory.mktemp("run")
    out, _ = run("train", *TRAIN, "--config.evaluation=None", "--workdir", str(workdir))
    return workdir, out


@pytest.fixture
def in_process(monkeypatch):
    """JAX runs already, so `sample.main` can be called in this process."""
    monkeypatch.setattr(runtime, "start", lambda: None)


@pytest.mark.slow
def test_training_writes_config_metrics_and_evaluation(tmp_path):
    workdir = tmp_path / "run"
    out, _ = run("train", *TRAIN, "--config.evaluation.every=8", "--workdir", str(workdir))
    config = json.loads((workdir / "config.json").read_text())
    assert config["steps"] == STEPS
    assert [row["step"] for row in metrics(workdir) if "loss" in row] == list(range(1, STEPS + 1))
    assert list(workdir.glob("**/events.out.tfevents*"))
    report = json.loads((workdir / "evaluation.json").read_text())
    assert report
    assert "coverage" in out
    assert pixels(workdir / "evaluation.png").shape[1] > 100
    evaluated = {row["step"]: row for row in metrics(workdir) if "evaluation/guidance_1/frechet" in row}
    assert list(evaluated) == [8, STEPS]
    assert pixels(workdir / "evaluation" / "00000008.png").shape[1] > 100
    final = next(row for row in report["samples"] if row["guidance"] == 1)
    of_steps = [row["evaluation/guidance_1/frechet"] for row in evaluated.values()]
    assert of_steps[0] != of_steps[1] == pytest.approx(final["frechet"])


@pytest.mark.slow
def test_killed_at_a_random_step_the_same_command_reaches_the_same_state(trained, tmp_path):
    workdir, _ = trained
    command = (*TRAIN, "--config.evaluation=None", "--workdir", str(tmp_path))
    process = start("train", *command)
    kill_after = int(np.random.default_rng().integers(4, STEPS - 1))
    file = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if file.exists() and len(file.read_text().splitlines()) >= kill_after:
            process.kill()
        time.sleep(0.002)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    run("train", *command)
    assert digest(tmp_path, STEPS) == digest(workdir, STEPS)
    steps = [row["step"] for row in metrics(tmp_path) if "loss" in row]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGHUP, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_the_state_and_ends_with_its_status(tmp_path, number, status):
    command = (
        *TRAIN,
        "--config.evaluation=None",
        "--config.checkpoint_every=1000",
        "--workdir",
        str(tmp_path),
    )
    process = start("train", *command)
    file = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if file.exists() and len(file.read_text().splitlines()) >= 3:
            process.send_signal(number)
            break
        time.sleep(0.002)
    _, err = process.communicate(timeout=100)
    assert process.returncode == status, err
    assert "Traceback" not in err
    (saved,) = (path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert 3 <= int(saved) < STEPS
    assert f"step {saved}" in err


def losses(workdir):
    return np.array([row["loss"] for row in metrics(workdir) if "loss" in row])


@pytest.mark.slow
def test_one_device_and_four_train_alike(trained, tmp_path):
    workdir, _ = trained
    run("train", *TRAIN, "--config.evaluation=None", "--workdir", str(tmp_path), devices=4)
    assert len(losses(workdir)) == STEPS
    np.testing.assert_allclose(losses(tmp_path), losses(workdir), rtol=1e-5, atol=1e-5)


def two_processes(*command):
    """Exit statuses and errors of a training by two processes with four devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        start(
            "train", *command, devices=4,
            JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=400)[1] for process in processes]
    return [process.returncode for process in processes], errors


@pytest.mark.slow
def test_two_processes_with_four_devices_train_as_one_with_eight(tmp_path):
    command = (*TRAIN, "--config.steps=10", "--config.evaluation=None")
    run("train", *command, "--workdir", str(tmp_path / "one"), devices=8)
    codes, errors = two_processes(*command, "--workdir", str(tmp_path / "two"))
    assert codes == [0, 0], "\n".join(errors)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_what_the_first_of_two_processes_finds_ends_both(tmp_path):
    (tmp_path / "evaluation.json").mkdir()
    codes, errors = two_processes(*TRAIN, "--workdir", str(tmp_path))
    assert codes == [2, 2]
    for text in errors:
        assert f"error: --workdir={tmp_path}: expected a folder for evaluation.json" in text
        assert "Traceback" not in text


@pytest.mark.slow
def test_another_config_in_the_same_workdir_is_refused_by_name(trained):
    workdir, _ = trained
    before = (workdir / "config.json").read_bytes()
    _, err = run("train", *TRAIN, "--config.optimizer.learning_rate=0.5", "--workdir", str(workdir), code=2)
    assert "optimizer.learning_rate" in err
    assert "0.5" in err
    assert len(err.strip().splitlines()) == 1
    assert (workdir / "config.json").read_bytes() == before


@pytest.mark.slow
def test_the_output_format_follows_from_the_name(trained, tmp_path, in_process):
    workdir, _ = trained
    common = ("--workdir", str(workdir), "--n", "7", "--label", "3,1", "--steps", "3", "--guidance", "2")
    sample.main([*common, "--out", str(tmp_path / "x.npz")])
    with np.load(tmp_path / "x.npz") as stored:
        images = stored["images"]
        assert images.dtype == np.uint8
        assert images.shape == (7, 8, 8, 1)
        assert stored["label"].tolist() == [3, 1, 3, 1, 3, 1, 3]
    sample.main([*common, "--out", str(tmp_path / "x")])
    names = sorted(path.name for path in (tmp_path / "x").iterdir())
    assert names == [f"{i:06}.png" for i in range(7)]
    for name, image in zip(names, images, strict=True):
        assert np.array_equal(pixels(tmp_path / "x" / name), image[..., 0])
    sample.main([*common, "--sampler", "heun", "--out", str(tmp_path / "x.png")])
    assert pixels(tmp_path / "x.png").shape[1] >= 3 * 8


@pytest.mark.slow
def test_a_sampler_is_a_recipe_of_the_run_or_a_class(trained, tmp_path):
    workdir, _ = trained
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    plain = Generator.load(str(copy)).recipe
    stored = json.loads((copy / "config.json").read_text())
    named = dataclasses.replace(plain, sampler=Lms(), steps=99, initial="unit", guidance=ClassifierFree(3.0))
    stored["recipes"] = json.loads(to_json(describe({"dpmsolver2mkarras": named, "ddim": named})))
    (copy / "config.json").write_text(json.dumps(stored))

    def recipe(sampler):
        return Generator.load(str(copy), sampler=sampler, overrides=[("sampling.steps", "3")]).recipe

    kept = {"steps": 3, "guidance": plain.guidance}
    for name in ("DPM++ 2M Karras", "DDIM"):
        assert recipe(name) == dataclasses.replace(named, **kept)
    assert recipe("Ddim(eta=0.5)") == dataclasses.replace(plain, sampler=Ddim(0.5), **kept)
    assert recipe("dpm_solver2m") == dataclasses.replace(plain, sampler=DpmSolver2M(), **kept)
    assert recipe(None) == dataclasses.replace(plain, **kept)
    changes = [
        ("sampling.sampler.eta", "0.5"),
        ("recipes.ddim.t_end", "0.1"),
        ("sampling.initial", "process"),
    ]
    changed = Generator.load(str(copy), sampler="jaxdiff.sampling.samplers.ddim:Ddim", overrides=changes)
    assert changed.recipe == dataclasses.replace(plain, sampler=Ddim(0.5), initial="process")
    changed = Generator.load(str(copy), sampler="ddim", overrides=changes[1:])
    expected = {"initial": "process", "t_end": 0.1, "steps": plain.steps, "guidance": plain.guidance}
    assert changed.recipe == dataclasses.replace(named, **expected)
    with pytest.raises(UserError, match=r"--sampler=hoin.*dpmsolver2mkarras"):
        recipe("hoin")


@pytest.mark.slow
def test_an_existing_output_is_overwritten_only_with_the_flag(trained, tmp_path):
    workdir, _ = trained
    out = tmp_path / "x.npz"
    out.write_text("precious")
    command = ("--workdir", str(workdir), "--n", "2", "--steps", "2", "--out", str(out))
    _, err = run("sample", *command, code=2)
    assert "--overwrite" in err
    assert out.read_text() == "precious"
    run("sample", *command, "--overwrite")
    with np.load(out) as stored:
        assert stored["images"].shape == (2, 8, 8, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        (("--label", "11"), ("label", "11", "0 to 9")),
        (("--label", "three"), ("three",)),
        (("--n", "0"), ("--n", "0")),
        (("--sampler", "hoin"), ("hoin", "Heun")),
        (("--config.sampling.stepz=3",), ("stepz", "sampling.steps")),
        (("--workdir", "/nonexistent"), ("/nonexistent",)),
        (("--steps", "many"), ("many",)),
    ],
)
def test_sampling_mistakes_are_one_line(trained, tmp_path, in_process, arguments, phrases):
    workdir, _ = trained
    with pytest.raises(UserError) as error:
        sample.main(["--workdir", str(workdir), "--out", str(tmp_path / "x.png"), *arguments])
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert "Fix: " in message
    for phrase in phrases:
        assert phrase in message


@pytest.mark.slow
def test_a_stored_config_cannot_name_foreign_classes(trained, tmp_path):
    workdir, _ = trained
    stored = json.loads((workdir / "config.json").read_text())
    stored["sampling"]["sampler"] = {"target": "os:system", "command": f"touch {tmp_path}/owned"}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    _, err = run("sample", "--workdir", str(tmp_path), "--out", str(tmp_path / "x.png"), code=2)
    assert re.search("os:system", err)
    assert not os.path.exists(tmp_path / "owned")


@pytest.mark.slow
def test_image_i_depends_on_checkpoint_seed_and_i_only(trained, in_process):
    from jaxdiff.generation.generator import Generator

    workdir, _ = trained
    generator = Generator.load(str(workdir))
    labels = [int(i) % 10 for i in range(37)]
    many = generator(label=labels, seed=5).astype(int)
    few = generator(label=labels[:5], seed=5).astype(int)
    assert np.abs(many[:5] - few).max() <= 1
    other = generator(label=labels[:5], seed=6).astype(int)
    assert np.abs(few - other).max() > 50
    null = generator(4, label=None, seed=5)
    assert null.shape == (4, 8, 8, 1)
