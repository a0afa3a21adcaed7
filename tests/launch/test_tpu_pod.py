"""The TPU launcher with a fake `gcloud`: which commands it runs, in which order, and when it stops."""

import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.tools import LAUNCH, flags

FLAGS = {
    "name": "digits", "project": "my-project", "zone": "us-east5-a", "accelerator_type": "v6e-16",
    "runtime_version": "v2-alpha-tpuv6e", "config": "configs/digits.py", "workdir": "gs://bucket/digits",
}  # fmt: skip

# The n-th `describe` prints the n-th entry of the file `states`, and the n-th jaxdiff.train exits with the n-th entry
# of `statuses`; the last entry repeats. An entry that is a file of errors is printed as gcloud's own error instead.
GCLOUD = r"""
nth() {
  local words=($(cat "$FAKE/$1")) i=$(($(grep -c -- "$2" "$FAKE/calls") - 1))
  ((i < ${#words[@]})) || i=$((${#words[@]} - 1))
  echo "${words[$i]}"
}
answer() {
  [[ ! -f "$FAKE/errors/$1" ]] || { cat "$FAKE/errors/$1" >&2; exit 1; }
}
case "$*" in
  *" create "*) answer "$(nth creations " create ")" ;;
  *" delete "*) answer "$(nth deletions " delete ")" ;;
  *" describe "*) state="$(nth states " describe ")"; answer "$state"; echo "$state" ;;
  *jaxdiff.train*)
    status="$(nth statuses jaxdiff.train)"
    [[ "$status" != hang ]] || exec sleep 60
    exit "$status" ;;
esac
"""

ERRORS = {
    "quota": "ERROR: (gcloud.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED: Quota limit exceeded.",
    "stockout": "ERROR: (gcloud.compute.tpus.queued-resources.create) There is no more capacity in the zone.",
    "login": "ERROR: (gcloud.compute) There was a problem refreshing your auth tokens: Reauthentication failed.",
    "permission": "ERROR: (gcloud.compute) PERMISSION_DENIED: Permission 'tpu.nodes.create' denied.",
    "absent": "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource was not found.",
    "network": "ERROR: (gcloud.compute) There was a problem connecting: Temporary failure in name resolution.",
}


@pytest.fixture
def launch(tools):
    """A function that runs tpu_pod.sh with the fake gcloud; returns the process and its gcloud calls."""
    tools.add("gcloud", GCLOUD)
    (tools.folder / "errors").mkdir()
    for name, text in ERRORS.items():
        (tools.folder / "errors" / name).write_text(text + "\n")

    def run(*words, states="ACTIVE", statuses="0", creations="-", deletions="-", begin=tools.run, **changed):
        tools.calls.write_text("")
        answers = {"states": states, "statuses": statuses, "creations": creations, "deletions": deletions}
        for name, text in answers.items():
            (tools.folder / name).write_text(text)
        finished = begin(LAUNCH / "tpu_pod.sh", "--poll=0", *flags(**{**FLAGS, **changed}), *words)
        return finished, [verb(line) for line in tools.calls.read_text().splitlines()]

    return run


def verb(call: str) -> str:
    """The verb of a gcloud command."""
    for word, name in [("jaxdiff.train", "train"), ("venv", "install"), (" scp ", "copy")]:
        if word in call:
            return name
    return call.removeprefix("gcloud ").split()[3]


ONCE = ["create", "describe", "copy", "install", "train"]


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
        "--config", "configs/digits.py", "--workdir", "gs://bucket/digits", "--config.x='a b'",
    ]  # fmt: skip


@pytest.mark.parametrize("states", ["network ACTIVE", "network network WAITING_FOR_RESOURCES network ACTIVE"])
def test_a_failing_network_costs_no_slice(launch, states):
    finished, calls = launch(states=states)
    assert finished.returncode == 0, finished.stderr
    assert calls.count("create") == calls.count("delete") == 1


def test_a_network_that_stays_away_ends_the_script(launch):
    finished, calls = launch(states="network")
    assert finished.returncode == 1
    assert "the state of digits is unknown" in finished.stderr
    assert calls[-1] == "delete"


@pytest.mark.parametrize("error", ["login", "permission"])
@pytest.mark.parametrize("place", ["creations", "states"])
def test_waiting_does_not_mend_a_missing_login(launch, error, place):
    """Also after a preemption, where the script would otherwise try again."""
    for answers, statuses in (("", "0"), ("ok ok " if place == "creations" else "ACTIVE ", "75 0")):
        finished, calls = launch(**{place: answers.replace("ok ok", "-") + error}, statuses=statuses)
        assert finished.returncode == 1
        assert ERRORS[error] in finished.stderr
        assert "not logged in" in finished.stderr
        assert calls.count("create") <= 2


@pytest.mark.parametrize("error", ["quota", "stockout"])
def test_a_refused_request_ends_the_first_try_and_is_repeated_after_a_preemption(launch, error):
    finished, calls = launch(creations=error)
    assert finished.returncode == 1
    assert ERRORS[error] in finished.stderr
    assert calls == ["create"]
    finished, calls = launch(creations=f"- {error} {error} -", statuses="75 0")
    assert finished.returncode == 0, finished.stderr
    assert calls == [*ONCE, "delete", "create", "create", *ONCE, "delete"]


def test_a_slice_that_is_gone_is_requested_again(launch):
    finished, calls = launch(states="ACTIVE absent ACTIVE", statuses="1 0")
    assert finished.returncode == 0, finished.stderr
    assert calls.count("create") == 2


def test_a_deletion_that_failed_is_repeated_before_the_next_request(launch):
    finished, calls = launch(deletions="network -", statuses="75 0")
    assert finished.returncode == 0, finished.stderr
    assert calls == [*ONCE, "delete", "delete", *ONCE, "delete"]


def test_a_slice_that_is_gone_needs_no_deletion(launch):
    finished, _ = launch(deletions="absent")
    assert finished.returncode == 0
    assert "could not be deleted" not in finished.stderr


INTERRUPTED = """\
import os, signal, sys
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Runs a command that signals end, also where a shell or nohup has made these tests ignore them."""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_during_the_training_deletes_the_slice_at_once(launch, tools, number, status):
    def begin(*command):
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, *map(str, command)], env=tools.environment(),
            stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        while "jaxdiff.train" not in tools.calls.read_text():
            time.sleep(0.05)
        process.send_signal(number)
        process.wait(timeout=30)
        return process

    began = time.monotonic()
    finished, calls = launch(statuses="hang", begin=begin)
    assert finished.returncode == status
    assert calls == [*ONCE, "delete"]
    assert time.monotonic() - began < 45  # the training itself would have taken 60


@pytest.mark.parametrize("given", ["08", "010", "0"])
def test_numbers_are_decimal(launch, given):
    finished, calls = launch(f"--max-restarts={given}", statuses="75")
    assert finished.returncode == 75
    assert calls.count("train") == int(given) + 1


def test_what_is_given_reaches_the_training_unchanged(launch):
    """Also what a shell would replace: the command passes through two shells."""
    odd = 'it\'s $HOME `id` $(id) "*" \\ a\nb é'
    finished, _ = launch("--dry-run", "--env", f"ODD={odd}", "--", f"--config.x={odd}")
    line = finished.stdout[finished.stdout.rindex("gcloud compute tpus tpu-vm ssh") :]
    line = line[: line.rindex("gcloud compute tpus queued-resources delete")]
    remote = shlex.split(line)[-1].removeprefix("--command=")
    assert shlex.split(remote)[5] == f"ODD={odd}"
    assert shlex.split(remote)[-1] == f"--config.x={odd}"
    echoed = subprocess.check_output(
        ["bash", "-c", remote.replace("cd jaxdiff && env", "printf '%s|'")], text=True
    )
    assert echoed.split("|")[1] == f"ODD={odd}"


def test_the_archive_has_the_config(launch, tmp_path):
    """The command that the dry run prints makes an archive from which the config can be read."""
    finished, _ = launch("--dry-run")
    words = shlex.split(finished.stdout.splitlines()[0])
    words[words.index("-czf") + 1] = str(tmp_path / "archive.tar.gz")
    subprocess.run(words, check=True)
    names = subprocess.check_output(["tar", "-tzf", tmp_path / "archive.tar.gz"], text=True).splitlines()
    assert {"configs/digits.py", "jaxdiff/train.py", "pyproject.toml"} <= set(names)
