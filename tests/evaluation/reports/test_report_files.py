"""Reports are written where the run is, or kept elsewhere; a place is tried before the evaluation."""

import json
import os

import numpy as np
import pytest

from jaxdiff.errors import RunFailure, UserError
from jaxdiff.evaluation.protocols import Report
from jaxdiff.evaluation.reports import files

REPORT = Report({"fid": 1.5}, [["", "a"]], "caption", np.zeros((4, 4, 3), np.uint8), {})


def test_a_report_replaces_the_one_before(tmp_path):
    for _ in range(2):
        files.check(tmp_path)
        files.write(REPORT, tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(files.NAMES)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {"fid": 1.5}


@pytest.mark.parametrize("name", files.NAMES)
def test_a_folder_in_the_place_of_a_file_is_refused_first(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(
        UserError, match=r"--workdir=.*: expected a folder for evaluation\.json.* got is a directory"
    ):
        files.check(tmp_path)
    assert os.listdir(tmp_path) == [name]


def test_a_workdir_that_cannot_be_written_is_refused_first(tmp_path):
    with pytest.raises(UserError, match=r"expected a folder for evaluation\.json and evaluation\.png"):
        files.check("/proc/self")


def test_a_report_that_cannot_be_written_after_all_is_kept(tmp_path, monkeypatch, tmp_path_factory):
    kept = tmp_path_factory.mktemp("kept")
    monkeypatch.setattr(files.tempfile, "mkdtemp", lambda prefix: str(kept))
    (tmp_path / "evaluation.png").mkdir()
    (tmp_path / "evaluation.png" / "a").touch()
    with pytest.raises(RunFailure, match=rf"the report was kept in {kept}"):
        files.write(REPORT, tmp_path)
    assert json.loads((kept / "evaluation.json").read_text()) == {"fid": 1.5}
    assert sorted(os.listdir(tmp_path)) == sorted(files.NAMES)


def test_a_report_that_finds_no_room_anywhere_is_one_line(tmp_path, monkeypatch, tmp_path_factory):
    spare = tmp_path_factory.mktemp("spare") / "full"
    (spare / "evaluation.json").mkdir(parents=True)
    (spare / "evaluation.json" / "a").touch()
    monkeypatch.setattr(files.tempfile, "mkdtemp", lambda prefix: str(spare))
    (tmp_path / "evaluation.png").mkdir()
    (tmp_path / "evaluation.png" / "a").touch()
    with pytest.raises(RunFailure, match="the report is lost, and can be computed again"):
        files.write(REPORT, tmp_path)
    assert not spare.exists()


def test_a_folder_is_made_and_its_report_is_replaced_only_if_wanted(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = files.make("~/a/b", overwrite=False)
    assert os.fspath(folder) == str(tmp_path / "a" / "b")
    files.write(REPORT, folder)
    with pytest.raises(UserError, match=r"--out='~/a/b': expected a folder without a report, got one"):
        files.make("~/a/b", overwrite=False)
    assert files.make("~/a/b", overwrite=True) == folder
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"--out=.*file/c: expected a folder that can be made, got not a directory"
    ):
        files.make(tmp_path / "file" / "c", overwrite=False)
