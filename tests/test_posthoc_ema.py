"""The command for post-hoc EMA, on snapshots with known averages."""

import errno
import pathlib
import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxdiff import config, posthoc_ema
from jaxdiff.cli import app as command
from jaxdiff.distributed import runtime
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.runs import workdir as workdirs
from jaxdiff.training import snapshots
from jaxdiff.training.ema import Ema
from jaxdiff.training.power_ema import PowerEma, exponent
from jaxdiff.training.snapshots import Snapshots
from jaxdiff.training.state import abstract_state
from jaxdiff.training.step import TrainState
from tests.commands import DIGITS, TINY

STDS = (0.05, 0.1)
STEPS = (600, 1000)


def run_folder(workdir, ema):
    """The config of a run that tracks `ema`, without a run."""
    overrides = [(word.removeprefix("--config.").split("=", 1)) for word in TINY]
    stored = command.load_config(DIGITS, [(name, text) for name, text in overrides])
    stored["ema"] = config.describe(ema)
    workdirs.init_workdir(stored, str(workdir))
    return config.build(stored)


def parameters(experiment):
    return abstract_state(
        experiment.task, experiment.optimizer.make(experiment.steps), experiment.mesh.make()
    ).ema


def mean_of_time(steps, std):
    """The average of parameters that grow by 1 in each step."""
    return steps * (exponent(std) + 1) / (exponent(std) + 2)


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """JAX is running already."""
    monkeypatch.setattr(runtime, "start", lambda: None)


def command_line(kept, out, std=0.08, run="run"):
    return ["--workdir", str(kept / run), "--std", str(std), "--out", str(out)]


def end(words, capsys):
    """The exit status and the last line of the command."""
    with pytest.raises(SystemExit) as stop:
        command.run(posthoc_ema.main, words)
    return stop.value.code, capsys.readouterr().err


def files(folder):
    return {str(path): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run whose parameters all equal the step number, with its snapshots."""
    tmp_path = tmp_path_factory.mktemp("kept")
    experiment = run_folder(tmp_path / "run", PowerEma(STDS, snapshot_every=400))
    store(tmp_path / "run", experiment, mean_of_time)
    return tmp_path


def store(workdir, experiment, values):
    """Snapshots whose parameters all have the value of their step and length."""
    abstract = parameters(experiment)

    def filled(value):
        return jax.tree.map(
            lambda leaf: jax.device_put(np.full(leaf.shape, value, leaf.dtype), leaf.sharding), abstract
        )

    with Snapshots(workdir) as stored:
        for step in STEPS:
            first, second = (filled(values(step, std)) for std in STDS)
            stored.save(TrainState(jnp.int32(step), (), first, (), extra_emas=(second,)), step)


@pytest.mark.slow
def test_the_new_folder_has_the_average_and_can_be_sampled_from(kept, capsys):
    out = kept / "run-0.08"
    posthoc_ema.main(["--workdir", str(kept / "run"), "--std", "0.08", "--out", str(out)])
    assert "step 1000" in capsys.readouterr().out
    generator = Generator.load(str(out))
    for leaf in jax.tree.leaves(generator.params):
        np.testing.assert_allclose(leaf, mean_of_time(1000, 0.08), rtol=8e-3)
    with pytest.raises(UserError, match=r"--out=.*expected a new folder"):
        posthoc_ema.main(["--workdir", str(kept / "run"), "--std", "0.08", "--out", str(out)])


def test_invalid_flags_are_errors(kept):
    out = str(kept / "out")
    with pytest.raises(UserError, match=r"std=0\.4"):
        posthoc_ema.main(["--workdir", str(kept / "run"), "--std", "0.4", "--out", out])
    with pytest.raises(UserError, match=r"step=20: expected a snapshot"):
        posthoc_ema.main(["--workdir", str(kept / "run"), "--std", "0.08", "--step", "20", "--out", out])
    with pytest.raises(UserError, match="no changes of the run's config"):
        posthoc_ema.main(["--workdir", str(kept / "run"), "--std", "0.08", "--out", out, "--config.steps=3"])
    run_folder(kept / "plain", Ema())
    with pytest.raises(UserError, match="a run with PowerEma, got one with Ema"):
        posthoc_ema.main(["--workdir", str(kept / "plain"), "--std", "0.08", "--out", out])
    assert not (kept / "out").exists()


@pytest.fixture
def full(kept, tmp_path, monkeypatch):
    """A folder on a disk that takes no checkpoint, and another for temporary files."""
    disk, spare = tmp_path / "disk", tmp_path / "spare"
    disk.mkdir()
    spare.mkdir()
    finalize = ocp.PyTreeCheckpointHandler.finalize

    def no_room(self, directory):
        if disk in directory.parents or not spare.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        finalize(self, directory)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "finalize", no_room)
    monkeypatch.setattr(tempfile, "tempdir", str(spare))
    return disk


@pytest.mark.slow
def test_an_average_that_finds_no_room_is_kept_elsewhere(kept, full, capsys):
    before = files(kept / "run")
    status, line = end(command_line(kept, full / "out"), capsys)
    assert status == 1
    expected = (
        r"error: --out=.*/out: expected a place .* got no space left on device\. Fix: .* kept as (\S+)\n"
    )
    found = re.fullmatch(expected, line, re.IGNORECASE)
    assert found, line
    assert pathlib.Path(found[1]).parent == full.parent / "spare"
    for leaf in jax.tree.leaves(Generator.load(found[1]).params):
        np.testing.assert_allclose(leaf, mean_of_time(1000, 0.08), rtol=8e-3)
    assert not files(full)
    assert files(kept / "run") == before


@pytest.mark.slow
def test_an_average_without_room_anywhere_leaves_nothing(kept, full, capsys, monkeypatch):
    before = files(kept / "run")
    (full.parent / "spare").rmdir()
    monkeypatch.chdir(full)
    status, line = end(command_line(kept, full / "out"), capsys)
    assert (status, line.count("\n")) == (1, 1)
    assert "there and elsewhere" in line
    assert not files(full)
    assert files(kept / "run") == before


@pytest.mark.slow
def test_a_folder_that_exists_is_left_as_it_is(kept, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spare"))
    (tmp_path / "spare").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    status, line = end(command_line(kept, tmp_path / "out"), capsys)
    assert (status, line.count("\n")) == (2, 1)
    assert "expected a new folder, got an existing folder" in line

    def made_meanwhile(*arguments, reconstruct=snapshots.reconstruct):
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "mine").write_text("mine")
        return reconstruct(*arguments)

    monkeypatch.setattr(snapshots, "reconstruct", made_meanwhile)
    status, line = end(command_line(kept, tmp_path / "late"), capsys)
    assert (status, line.count("\n")) == (2, 1)
    (elsewhere,) = (tmp_path / "spare").iterdir()
    assert f"made there meanwhile. Fix: make room there; the output was kept as {elsewhere}" in line
    assert Generator.load(str(elsewhere)).params
    for name in ("out", "late"):
        assert [path.name for path in (tmp_path / name).iterdir()] == ["mine"]


@pytest.mark.slow
def test_an_average_that_is_not_finite_is_not_written(tmp_path, capsys):
    largest = float(np.finfo(np.float32).max)
    experiment = run_folder(tmp_path / "run", PowerEma(STDS, snapshot_every=400))
    store(tmp_path / "run", experiment, lambda step, std: largest * (1 if std == STDS[0] else -1))
    status, line = end(command_line(tmp_path, tmp_path / "out", std=0.2), capsys)
    assert (status, line.count("\n")) == (2, 1)
    assert "--std=0.2: expected a finite average, got NaN or infinite numbers" in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
