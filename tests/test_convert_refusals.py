"""Conversion refuses weights and places that cannot serve, writes nothing then, and says what it removed."""

import pytest

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


@pytest.fixture
def forgetful(monkeypatch):
    """Saves that come to nothing."""
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, state: False)


def test_weights_are_stored_only_if_they_can_be_read_back(folder, forgetful, capsys):
    with pytest.raises(UserError, match="expected to read back the weights that were written"):
        run(folder, peer().state_dict())
    assert "wrote" not in capsys.readouterr().out


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
