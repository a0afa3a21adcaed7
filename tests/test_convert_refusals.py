"""Conversion refuses weights and places that cannot serve, writes nothing then, and says what it removed."""

import os
import re
import subprocess
import sys

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from jaxdiff import convert
from jaxdiff.errors import UserError
from jaxdiff.training.checkpoint import Checkpoints

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from tests.test_convert import CONFIG, ROOT, peer  # noqa: E402


@pytest.fixture
def folder(tmp_path):
    """A folder of diffusers, and a config for its network."""
    peer().save_pretrained(tmp_path / "plain")
    (tmp_path / "config.py").write_text(CONFIG.format(root=ROOT))
    return tmp_path


def run(folder, state, *more):
    """Converts a state dict; returns the run's folder."""
    torch.save(state, folder / "weights.pt")
    config, workdir = f"{folder}/config.py:{folder}/plain", folder / "run"
    words = ["--from", str(folder / "weights.pt"), "--config", config, "--workdir", str(workdir), *more]
    convert.main(words)
    return workdir


def broken():
    state = {name: value.clone() for name, value in peer().state_dict().items()}
    state["conv_in.weight"][0] = float("nan")
    return state


def test_weights_that_are_not_finite_are_named_and_nothing_is_written(folder):
    with pytest.raises(UserError, match=r"got .* NaN or infinite: 9 of conv_in\.weight\. Fix: "):
        run(folder, broken())
    assert not (folder / "run").exists()


def test_tensors_that_do_not_fit_are_a_table_below_one_line(folder):
    state = peer().state_dict()
    state |= {"conv_in.weight": torch.zeros(2, 2), "x\ny": state.pop("conv_in.bias")}
    torch.save(state, folder / "weights.pt")
    words = ["--from", "weights.pt", "--config", f"config.py:{folder}/plain", "--workdir", "run"]
    found = subprocess.run(
        [sys.executable, "-m", "jaxdiff.convert", *words],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    first, *rows = found.stderr.splitlines()
    assert found.returncode == 2
    assert re.fullmatch(r"error: --from: expected .* got 3 that differ.* Fix: .*", first)
    assert [row[:2] for row in rows] == ["  "] * 3
    assert {row.split()[1] for row in rows} == {"shape", "conv_in.bias", "read"}
    assert any("x\\ny" in row for row in rows)
    assert not (folder / "run").exists()


class Bucket(MemoryFileSystem):
    """A bucket in memory, gs://..."""

    protocol, store, pseudo_dirs, closed = ("gs", "gcs"), {}, [""], False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs:/"))

    def _open(self, path, mode="rb", **options):
        if mode != "rb" and Bucket.closed:
            raise RuntimeError("403: no access to this bucket")
        return super()._open(path, mode, **options)


@pytest.fixture
def bucket(monkeypatch):
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    for name, value in {"store": {}, "pseudo_dirs": [""], "closed": False}.items():
        monkeypatch.setattr(Bucket, name, value)
    return Bucket


def test_a_workdir_in_a_bucket_is_looked_at_there(folder, bucket, monkeypatch):
    """Weights that are not finite end each conversion here that gets past the look at the place."""
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="NaN or infinite"):
        run(folder, broken(), "--workdir", "gs://bucket/run")
    assert not bucket.store, "the trial is removed"
    bucket.store["/bucket/run/checkpoints/0/manifest.json"] = MemoryFile(None, "x", b"{}")
    with pytest.raises(UserError, match=r"--workdir=gs://bucket/run: expected a folder without checkpoints"):
        run(folder, broken(), "--workdir", "gs://bucket/run")
    bucket.closed = True
    with pytest.raises(
        UserError, match=r"--workdir=gs://bucket/other: expected a place .* got 403: no access"
    ):
        run(folder, broken(), "--workdir", "gs://bucket/other")
    assert not (folder / "gs:").exists()


@pytest.fixture
def forgetful(monkeypatch):
    """Saves that come to nothing."""
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, state: False)


def test_weights_are_stored_only_if_they_can_be_read_back(folder, forgetful, capsys):
    (folder / "run").mkdir()
    (folder / "run" / "notes.txt").write_text("mine")
    with pytest.raises(
        UserError, match=r"read back the weights that were written.* Fix: delete .*/run/checkpoints,"
    ):
        run(folder, peer().state_dict())
    assert "wrote" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_wrapper_is_removed_and_said_and_no_foreign_file_is_replaced(folder, capsys):
    state = {f"module.{name}": value for name, value in peer().state_dict().items()}
    workdir = run(folder, {"state_dict": state})
    assert "names without module." in capsys.readouterr().out
    config = (workdir / "config.json").read_bytes()
    for to in (workdir, folder / "plain"):
        with pytest.raises(UserError, match=r"--to=.*: expected a new file, got an existing file"):
            convert.main(["--workdir", str(workdir), "--to", str(to)])
    assert (workdir / "config.json").read_bytes() == config
    with pytest.raises(UserError, match=r"--to=.*: expected a place that can be written"):
        convert.main(["--workdir", str(workdir), "--to", str(folder / "config.py")])


@pytest.mark.parametrize("place", ["config.py", "config.py/run", "/proc/run"])
def test_a_workdir_that_cannot_be_written_is_refused_first(folder, place):
    with pytest.raises(UserError, match=r"--workdir=.*: expected a place that can be written"):
        run(folder, peer().state_dict(), "--workdir", str(folder / place))
