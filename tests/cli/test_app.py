"""Commands: a user's error is one line and status 2; an internal error is a traceback and status 1."""

import logging
import pathlib
import signal
import subprocess
import sys

import pytest

from jaxdiff.cli import app as command
from jaxdiff.errors import RunFailure, UserError, printable

ROOT = pathlib.Path(__file__).parents[2]

CONFIG = """\
import dataclasses
from fractions import Fraction

from jaxdiff.config import spec


def get_config():
    return spec(Fraction, numerator=1, denominator=2)
"""


def main(argv) -> None:
    """A command with the flags of jaxdiff's commands."""
    parser = command.Parser(description="Halve things.")
    parser.add_argument("--config")
    parser.add_argument("--n", type=int, default=1)
    parser.add_argument("--workdir", required="--need-workdir" in argv)
    flags, overrides = parser.parse([word for word in argv if word != "--need-workdir"])
    config = command.load_config(flags.config, overrides)
    print(config.numerator, config.denominator, flags.n)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of a user, with one config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "half.py").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def call(folder, capsys):
    """Runs a command line; returns status, stdout and stderr."""

    def run(*argv, main=main):
        with pytest.raises(SystemExit) as stop:
            command.run(main, argv)
        return stop.value.code, *capsys.readouterr()

    return run


def test_overrides_reach_the_config(call):
    assert call("--config", "configs/half.py", "--n", "3") == (0, "1 2 3\n", "")
    assert call("--config=configs/half.py", "--config.numerator=5") == (0, "5 2 1\n", "")
    assert call("--config.numerator", "-5", "--config", "configs/half.py") == (0, "-5 2 1\n", "")
    assert call("--config=configs/half.py", "--config.numerator=5", "--config.numerator=6")[1] == "6 2 1\n"


MISTAKES = {
    "no config": (["--n", "1"], "--config=: expected a config, got none. Fix: choose one of configs/half.py"),
    "missing file": (["--config", "configs/halv.py"], "Fix: did you mean configs/half.py?"),
    "folder": (["--config", "configs"], "Is a directory"),
    "stray word": (
        ["--config", "configs/half.py", "more"],
        "more: expected a flag, got a word that belongs to none",
    ),
    "stray first": (
        ["more", "--config", "configs/half.py"],
        "more: expected a flag, got a word that belongs to none",
    ),
    "unknown flag": (
        ["--workdri=x"],
        "--workdri=x: expected a flag of this command, got --workdri. Fix: did you mean",
    ),
    "unknown flag and value": (
        ["--workdri", "x"],
        "--workdri: expected a flag of this command, got --workdri",
    ),
    "strange flag": (
        ["--qqqqqq"],
        "--qqqqqq: expected a flag of this command, got --qqqqqq. Fix: use one of ",
    ),
    "abbreviation": (["--work", "x"], "got --work. Fix: did you mean --workdir?"),
    "wrong number": (["--n", "few"], "--n='few': expected a value of type int, got 'few'. Fix: give one"),
    "no value": (["--config"], "--config=: expected a value, got none. Fix: --config=VALUE"),
    "needed flag": (["--need-workdir"], "--workdir=: expected a value, got none. Fix: give --workdir"),
    "unknown field": (["--config=configs/half.py", "--config.numeratro=3"], "mean --config.numerator?"),
    "field without value": (["--config.numerator"], "--config.numerator=: expected a value, got none"),
    "flag for a value": (
        ["--config.numerator", "--n", "1"],
        "--config.numerator=: expected a value, got none",
    ),
}


@pytest.mark.parametrize(("argv", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_status_2(call, argv, expected):
    status, out, err = call(*argv)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert "Fix: " in err


@pytest.mark.parametrize(
    "odd",
    ["\n", "\r", "\x1b[2J", "\u2028"],
    ids=["line", "return", "escape", "separator"],
)
def test_control_characters_are_shown_escaped(call, odd):
    """A line break, a return, a terminal's clear screen, and a line separator."""
    assert printable("\udcff") == "\\udcff"  # a byte that is not UTF-8

    def warns_and_fails(argv) -> None:
        logging.getLogger("jaxdiff").warning("%s: odd", argv[0])
        raise RunFailure(f"path={argv[0]}: damaged")

    shown = odd.encode("unicode_escape").decode()
    assert call("--config", f"run{odd}x.py")[2].startswith(f"error: --config=run{shown}x.py: expected")
    assert call(f"run{odd}x", main=warns_and_fails)[2].splitlines()[-2:] == [
        f"warning: run{shown}x: odd",
        f"error: path=run{shown}x: damaged",
    ]


@pytest.mark.parametrize(("argv", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_debug_shows_the_traceback(folder, argv, expected):
    words = ["--debug", *argv]
    with pytest.raises(UserError, match="Fix: "):
        command.run(main, words)


BROKEN = {
    "syntax": ("x = 1\nx = = 2\n", "line 2: expected Python, got invalid syntax"),
    "import": ("\n\nimport absent_package\n", "line 3: ModuleNotFoundError: No module named"),
    "exception": ("def get_config():\n    return 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
    "assertion": ("assert 1 == 2, 'first\\nsecond'\n", "line 1: AssertionError: first second"),
    "typo": (
        CONFIG.replace("denominator", "denominatr"),
        "line 8: denominatr=2: expected a field of Fraction",
    ),
    "nothing": ("", "expected a function get_config(), got none"),
}


@pytest.mark.parametrize(("text", "expected"), BROKEN.values(), ids=BROKEN)
def test_a_mistake_in_the_config_file_names_its_line(call, folder, text, expected):
    (folder / "configs" / "half.py").write_text(text)
    status, _, err = call("--config=configs/half.py")
    assert status == 2
    assert err.startswith(f"error: --config=configs/half.py: {expected}")
    assert err.count("\n") == 1


def test_debug_shows_the_exception_in_the_config_file(folder):
    (folder / "configs" / "half.py").write_text(BROKEN["exception"][0])
    with pytest.raises(UserError) as caught:
        command.run(main, ["--config=configs/half.py", "--debug"])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("code", [75, 128 + signal.SIGINT])
def test_an_interrupted_run_exits_with_its_own_status(call, code):
    def stopped(argv) -> None:
        raise command.Interrupted(code, "stopped at step 3, all saved")

    assert call(main=stopped) == (code, "", "stopped at step 3, all saved\n")


def test_an_internal_error_keeps_its_traceback():
    def faulty(argv) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command.run(faulty, [])


def test_in_a_process_there_is_no_traceback_without_debug(folder):
    (folder / "halve.py").write_text(
        "from jaxdiff.cli import app\n\napp.run(lambda argv: app.load_config(None, ()))\n"
    )
    ends = {}
    for flag in ("--quiet", "--debug"):
        program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import halve"
        ends[flag] = subprocess.run([sys.executable, "-c", program, flag], capture_output=True, text=True)
    assert ends["--quiet"].returncode == 2
    assert "Traceback" not in ends["--quiet"].stderr
    assert ends["--debug"].returncode == 1
    assert "Traceback" in ends["--debug"].stderr
