"""How commands end: faults of the machine are one line as well, and nothing follows it."""

import errno
import os
import subprocess
import sys

import jax
import pytest

from jaxdiff.cli import app
from jaxdiff.distributed import runtime
from jaxdiff.errors import UserError


def end(error, capsys, *words):
    """The status and the line of a command that raises an error."""

    def main(argv):
        raise error

    with pytest.raises(SystemExit) as stop:
        app.run(main, words)
    return stop.value.code, capsys.readouterr().err


FAULTS = {
    "memory of a device": (
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore\n"),
        2, "error: memory: expected enough for this command, got RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes",
    ),
    "memory": (MemoryError(), 2, "error: memory: expected enough for this command, got MemoryError. Fix: "),
    "disk": (OSError(errno.ENOSPC, "full", "a.npz"), 1, "error: a.npz: expected a place to read or write, got no"),
    "disk of TensorStore": (
        ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device"),
        1, "error: disk: expected a place to read or write, got no space left",
    ),
    "access": (PermissionError(errno.EACCES, "no", "b"), 1, "error: b: expected a place to read or write, got per"),
}  # fmt: skip


@pytest.mark.parametrize(("error", "code", "line"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_the_machine_is_one_line_with_a_status(error, code, line, capsys):
    status, text = end(error, capsys)
    assert status == code
    assert text.startswith(line)
    assert text.count("\n") == 1
    with pytest.raises(type(error)):
        end(error, capsys, "--debug")


def test_an_interruption_is_one_line_and_status_130(capsys):
    assert end(KeyboardInterrupt(), capsys) == (130, "interrupted\n")


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "none", "c"), ValueError("a fault")])
def test_other_faults_keep_their_traceback(error, capsys):
    with pytest.raises(type(error)):
        end(error, capsys)


TALKATIVE = """
import threading

def main(argv):
    from jaxdiff.errors import UserError
    def late():
        threading.main_thread().join()
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")
    threading.Thread(target=late).start()
    if argv:
        print("x" * 100_000)
        return
    raise UserError("n=1: expected 2, got 1. Fix: give 2")

from jaxdiff.cli import app
app.run(main)
"""


def test_threads_of_libraries_say_nothing_after_the_error():
    found = subprocess.run([sys.executable, "-c", TALKATIVE], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (2, "error: n=1: expected 2, got 1. Fix: give 2\n")


def test_a_reader_that_leaves_is_no_fault():
    process = subprocess.Popen(
        [sys.executable, "-c", TALKATIVE.replace("raise RuntimeError", "str"), "print"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'cuda'")])
def test_an_absent_platform_is_named_with_those_that_are_there(error, monkeypatch):
    devices, asked, before = jax.devices, [], jax.config.jax_platforms

    def absent():
        asked.append(jax.config.jax_platforms)
        if asked[-1]:
            raise error
        return devices()

    monkeypatch.setattr(jax, "devices", absent)
    jax.config.update("jax_platforms", "cuda")
    try:
        with pytest.raises(
            UserError, match=r"JAX_PLATFORMS=cuda: expected a platform .* Fix: use JAX_PLATFORMS=cpu"
        ):
            runtime.devices()
    finally:
        jax.config.update("jax_platforms", before)
    assert asked == ["cuda", None]


def test_an_absent_platform_is_one_line_of_a_command(tmp_path):
    words = ["--config", "configs/digits.py", "--workdir", str(tmp_path / "run"), "--from", __file__]
    found = subprocess.run(
        [sys.executable, "-m", "jaxdiff.convert", *words],
        env=os.environ | {"JAX_PLATFORMS": "cuda" if not _has_gpu() else "nowhere"}, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 2
    assert found.stderr.startswith("error: JAX_PLATFORMS=")
    assert found.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def _has_gpu():
    return jax.devices()[0].platform == "gpu"
