"""The command for pages of runs: its place, its refusals, and the page in a browser."""

import io
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from jaxdiff import report
from jaxdiff.cli import app as command
from jaxdiff.errors import UserError
from tests import commands
from tests.reporting import runs
from tests.reporting.reading import pictures, read

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return runs.complete(tmp_path_factory.mktemp("runs") / "digits")


def test_the_page_lies_in_the_folder_of_the_run_and_is_replaced(run, capsys):
    report.main(["--workdir", str(run)])
    first = (run / "report.html").read_bytes()
    assert str(run / "report.html") in capsys.readouterr().out
    report.main(["--workdir", str(run)])
    assert (run / "report.html").read_bytes() == first


def test_another_place_is_replaced_only_with_the_flag(run, tmp_path):
    words = ["--workdir", str(run), "--out", str(tmp_path / "page.html")]
    report.main(words)
    with pytest.raises(
        UserError, match=r"--out=.*expected a new file, got an existing file. Fix: .*--overwrite"
    ):
        report.main(words)
    report.main([*words, "--overwrite"])
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "page.txt"], r"--out=page.txt: expected .html or .htm, got .txt"),
        (["--out", "page"], r"--out=page: expected .html or .htm, got no suffix"),
        (["--sweep", "nowhere"], r"--sweep='nowhere': expected a folder with sweep.jsonl"),
        (["--config.steps=3"], "no changes of the run's config"),
    ],
)
def test_mistakes_are_named(run, words, message):
    with pytest.raises(UserError, match=message) as caught:
        report.main(["--workdir", str(run), *words])
    assert "\n" not in str(caught.value)


def test_one_folder_twice_is_refused(run):
    with pytest.raises(UserError, match=r"--workdir=.*expected different folders"):
        report.main(["--workdir", str(run), f"{run}/."])


def test_a_folder_that_is_not_a_run_is_named_with_status_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        command.run(report.main, ["--workdir", str(tmp_path)])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: --workdir={tmp_path}: expected a folder with config.json, got none. Fix: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_works_in_its_own_process(run, tmp_path):
    out, _ = commands.run("report", "--workdir", str(run), "--out", str(tmp_path / "page.html"))
    assert out.startswith(f"wrote {tmp_path / 'page.html'}")
    assert pictures(read((tmp_path / "page.html").read_text()))


def test_a_sweep_of_another_folder_is_shown(run, tmp_path):
    runs.swept(tmp_path / "elsewhere")
    report.main(
        ["--workdir", str(run), "--sweep", str(tmp_path / "elsewhere"), "--out", str(tmp_path / "page.html")]
    )
    root = read((tmp_path / "page.html").read_text())
    own, other = root.of_class("answer")
    assert own.text == other.text
    assert str(tmp_path / "elsewhere") in root.text


def browse(page, tmp_path, *words):
    """The output of a headless browser, which has no network."""
    found = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1400,3000",
         f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", *words, f"file://{page}"],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    return found.stdout.decode()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_a_browser_shows_all_of_the_page(run, tmp_path):
    """The browser's own document has all elements of the file: none was moved or dropped to mend the markup."""
    page = tmp_path / "page.html"
    report.main(["--workdir", str(run), "--out", str(page)])
    ours, theirs = read(page.read_text()), read(browse(page, tmp_path, "--dump-dom"))
    for name in (
        "section",
        "table",
        "tr",
        "td",
        "th",
        "img",
        "svg",
        "path",
        "circle",
        "details",
        "data",
        "li",
        "p",
    ):
        assert len(theirs.all(name)) == len(ours.all(name)) > 0, name
    browse(page, tmp_path, f"--screenshot={tmp_path / 'page.png'}")
    with Image.open(io.BytesIO((tmp_path / "page.png").read_bytes())) as opened:
        pixels = np.asarray(opened.convert("RGB")).reshape(-1, 3)
    curve = (pixels == (0x00, 0x72, 0xB2)).all(axis=1).sum()
    assert curve > 200, "curves are drawn in the first colour"
    assert len(np.unique(pixels, axis=0)) > 1000, "sample grids are drawn"
