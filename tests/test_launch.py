"""The launchers with a fake `gcloud`: which commands they run, in which order, and when they stop."""

import os
import pathlib
import shlex
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TPU_POD = ROOT / "launch" / "tpu_pod.sh"
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
FLAGS = {
    "--name": "digits",
    "--project": "my-project",
    "--zone": "us-east5-a",
    "--accelerator-type": "v6e-16",
    "--runtime-version": "v2-alpha-tpuv6e",
    "--config": "pyproject.toml",
    "--workdir": "gs://bucket/digits",
}

# Logs its arguments, one call a line. The n-th `describe` prints the n-th entry of the file `states`, and the
# n-th jaxdiff.train exits with the n-th entry of `statuses`; the last entry repeats.
GCLOUD = r"""#!/usr/bin/env bash
echo "$*" >>"$FAKE/calls"
nth() {
  local words=($(cat "$FAKE/$1")) i=$(($(grep -c -- "$2" "$FAKE/calls") - 1))
  ((i < ${#words[@]})) || i=$((${#words[@]} - 1))
  echo "${words[$i]}"
}
case "$*" in
  *" describe "*) nth states " describe " ;;
  *jaxdiff.train*) exit "$(nth statuses jaxdiff.train)" ;;
esac
"""


@pytest.fixture
def launch(tmp_path):
    """A function that runs tpu_pod.sh with the fake gcloud; returns the process and its gcloud calls."""
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.parent.mkdir()
    gcloud.write_text(GCLOUD)
    gcloud.chmod(0o755)
    calls = tmp_path / "calls"

    def run(*arguments, states="ACTIVE", statuses="0", **changed):
        calls.write_text("")
        (tmp_path / "states").write_text(states)
        (tmp_path / "statuses").write_text(statuses)
        flags = {**FLAGS, **{f"--{name.replace('_', '-')}": value for name, value in changed.items()}}
        given = [f"{name}={value}" for name, value in flags.items() if value is not None]
        finished = subprocess.run(
            [TPU_POD, "--poll=0", *given, *arguments],
            env=os.environ | {"PATH": f"{gcloud.parent}:{os.environ['PATH']}", "FAKE": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return finished, [verb(line) for line in calls.read_text().splitlines()]

    return run


def verb(call: str) -> str:
    """The verb of a gcloud command."""
    for word, name in [("jaxdiff.train", "train"), ("pip install", "install"), (" scp ", "copy")]:
        if word in call:
            return name
    return call.removeprefix("gcloud ").split()[3]


ONCE = ["create", "describe", "copy", "install", "train"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_strict_valid_and_executable(script):
    assert "\nset -euo pipefail\n" in script.read_text()
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def test_a_finished_run_leaves_no_slice_behind(launch):
    finished, calls = launch()
    assert finished.returncode == 0, finished.stderr
    assert calls == [*ONCE, "delete"]


def test_keep_leaves_the_slice(launch):
    _, calls = launch("--keep")
    assert calls == ONCE


def test_the_script_waits_for_the_slice(launch):
    finished, calls = launch(states="WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
    assert finished.returncode == 0
    assert calls == ["create", "describe", "describe", *ONCE[1:], "delete"]


@pytest.mark.parametrize(
    ("states", "statuses"),
    [
        ("ACTIVE", "75 0"),  # a clean stop
        ("ACTIVE", "255 0"),  # ssh lost its worker
        ("ACTIVE SUSPENDING ACTIVE", "1 0"),  # a worker failed because another one was taken away
    ],
)
def test_a_preempted_run_continues_on_a_new_slice(launch, states, statuses):
    finished, calls = launch(states=states, statuses=statuses)
    assert finished.returncode == 0, finished.stderr
    assert [call for call in calls if call != "describe"] == [
        "create", "copy", "install", "train", "delete",
        "create", "copy", "install", "train", "delete",
    ]  # fmt: skip


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_a_request_that_cannot_be_fulfilled_is_repeated(launch, state):
    finished, calls = launch(states=f"WAITING_FOR_RESOURCES {state} ACTIVE")
    assert finished.returncode == 0
    assert calls == ["create", "describe", "describe", "delete", *ONCE, "delete"]


def test_restarts_are_bounded(launch):
    finished, calls = launch("--max-restarts=2", statuses="75")
    assert finished.returncode == 75
    assert calls.count("create") == calls.count("train") == calls.count("delete") == 3


def test_a_mistake_in_the_run_is_not_retried(launch):
    finished, calls = launch(statuses="2")
    assert finished.returncode == 2
    assert calls == [*ONCE, "describe", "delete"]


def test_dry_run_prints_the_commands_and_runs_none(launch):
    finished, calls = launch(
        "--dry-run", "--spot", "--env", "TFDS_DATA_DIR=gs://b/tfds", "--", "--config.x='a b'"
    )
    assert finished.returncode == 0
    assert calls == []
    commands = [line for line in finished.stdout.splitlines() if line.startswith("gcloud")]
    assert [verb(command) for command in commands] == [*ONCE, "delete"]
    assert "--spot" in commands[0]
    assert "pip install -e '.[tpu]'" in shlex.split(commands[3])[-1]
    remote = shlex.split(shlex.split(commands[4])[-1].removeprefix("--command="))
    assert remote == [
        "cd", "jaxdiff", "&&", "env", "JAXDIFF_DISTRIBUTED=1", "TFDS_DATA_DIR=gs://b/tfds",
        ".venv/bin/python", "-m", "jaxdiff.train",
        "--config", "pyproject.toml", "--workdir", "gs://bucket/digits", "--config.x='a b'",
    ]  # fmt: skip


@pytest.mark.parametrize("flag", FLAGS)
def test_each_required_flag_is_named(launch, flag):
    finished, calls = launch(**{flag.removeprefix("--").replace("-", "_"): None})
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"error: {flag}=: ")
    assert calls == []


@pytest.mark.parametrize(
    "argument",
    [
        "--workdir=runs/digits",
        "--config=configs/absent.py",
        "--max-restarts=many",
        "--spott",
        "stray",
        "--env",
    ],
)
def test_bad_flags_are_refused_before_anything_runs(launch, argument):
    finished, calls = launch(argument)
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"error: {argument}: ")
    assert "Fix: " in finished.stderr
    assert calls == []


def test_help_names_every_flag(launch):
    finished, _ = launch("--help")
    assert finished.returncode == 0
    for flag in (*FLAGS, "--spot", "--env", "--max-restarts", "--poll", "--keep", "--dry-run"):
        assert flag in finished.stdout


def test_local_passes_all_arguments_to_train(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    arguments = ["--config", "configs/digits.py", "--config.x=a b"]
    printed = subprocess.check_output(
        [ROOT / "launch" / "local.sh", *arguments],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        text=True,
    )
    assert printed.splitlines() == ["-m", "jaxdiff.train", *arguments]
