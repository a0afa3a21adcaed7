"""The Slurm launcher and its batch script, with fakes of `sbatch`, `srun`, `scancel` and `scontrol`.

The fake `srun` runs the command once for each task with the variables of Slurm; `scancel` signals these tasks only.
"""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.tools import LAUNCH, ROOT, flags

FLAGS = {
    "name": "digits", "nodes": 2, "gpus_per_node": 8, "time": "04:00:00", "config": "configs/digits.py",
    "workdir": "/shared/digits", "python": "/opt/venv/bin/python",
}  # fmt: skip

TRAIN = [
    "-m", "jaxdiff.train", "--config", "configs/digits.py", "--workdir", "/shared/digits", "--config.x=a b",
]  # fmt: skip

REFUSED = {
    "quota": "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, ...)",
    "stockout": "Batch job submission failed: Requested node configuration is not available",
    "not found": "invalid partition specified: gpus",
    "login": "Batch job submission failed: Protocol authentication error (munge: expired credential)",
}

# The status of srun is the highest one of its tasks.
SRUN = r"""
while [[ "$1" == --* ]]; do shift; done
worst=0 tasks=()
for ((i = 0; i < ${TASKS:-1}; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=${TASKS:-1} SLURM_STEP_NODELIST=localhost "$@" &
  tasks+=($!) && echo $! >>"$FAKE/tasks"
done
trap 'echo "forcing job termination" >&2; kill -KILL "${tasks[@]}"' TERM
for task in "${tasks[@]}"; do
  status=0 && wait "$task" || status=$?
  ((status <= worst)) || worst=$status
done
exit "$worst"
"""
SCANCEL = 'kill "-${1#--signal=}" $(cat "$FAKE/tasks")'


@pytest.fixture
def job(tools):
    """A function that starts the batch script with a command, as Slurm does on the first node."""
    tools.add("srun", SRUN)
    tools.add("scancel", SCANCEL)
    tools.add("scontrol")

    def start(*command, restarts=0, most=3, tasks=1):
        return subprocess.Popen(
            [LAUNCH / "slurm_job.sh", str(most), *map(str, command)], stderr=subprocess.PIPE, text=True,
            env=tools.environment(SLURM_JOB_ID="4242", SLURM_RESTART_COUNT=str(restarts), TASKS=str(tasks)),
        )  # fmt: skip

    return start


def calls_of(tools, program):
    return [words[1:] for words in tools.called() if words[0] == program]


def test_the_job_is_submitted_with_a_process_for_each_gpu(tools):
    tools.add("sbatch", "echo 4242")
    finished = tools.run(
        LAUNCH / "gpu_slurm.sh", *flags(**FLAGS, partition="gpu"), "--env=A=b c", "--", "--config.x=a b"
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "4242\n"
    ((*words,),) = calls_of(tools, "sbatch")
    options, (script, *words) = words[: -len(TRAIN) - 6], words[-len(TRAIN) - 6 :]
    assert {
        "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--requeue", "--signal=B:USR1@300",
        "--open-mode=append", "--time=04:00:00", "--job-name=digits", "--partition=gpu", f"--chdir={ROOT}",
    } <= set(options)  # fmt: skip
    assert script == str(LAUNCH / "slurm_job.sh")
    assert words == ["20", "env", "JAXDIFF_DISTRIBUTED=1", "A=b c", "/opt/venv/bin/python", *TRAIN]


def test_the_dry_run_prints_what_is_called(tools):
    tools.add("sbatch")
    words = [LAUNCH / "gpu_slurm.sh", *flags(**FLAGS), "--env=A=it's $HOME"]
    printed = tools.run(*words, "--dry-run").stdout
    assert tools.called() == []
    tools.run(*words)
    assert tools.called() == [shlex.split(printed)]


@pytest.mark.parametrize("reason", REFUSED)
def test_a_refused_job_is_one_line_after_sbatchs_own(tools, reason):
    tools.add("sbatch", f'echo "sbatch: error: {REFUSED[reason]}" >&2; exit 1')
    finished = tools.run(LAUNCH / "gpu_slurm.sh", *flags(**FLAGS))
    assert finished.returncode == 1
    own, ours = finished.stderr.splitlines()
    assert REFUSED[reason] in own
    assert ours.startswith("error: ")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"nodes": 0}, "--nodes=0"),
        ({"gpus_per_node": 0}, "--gpus-per-node=0"),
        ({"nodes": "2-4"}, "--nodes=2-4"),
        ({"notice": "soon"}, "--notice=soon"),
        ({"time": "nonsense"}, "--time=nonsense"),
        ({"time": "00:04:00"}, "--notice=300"),
        ({"time": "4", "notice": "240"}, "--notice=240"),
        ({"time": "7-0", "notice": "70000"}, "--notice=70000"),
    ],
)
def test_numbers_that_make_no_job_are_refused(tools, changed, message):
    tools.add("sbatch")
    finished = tools.run(LAUNCH / "gpu_slurm.sh", *flags(**{**FLAGS, **changed}))
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"error: {message}: ")
    assert tools.called() == []


@pytest.mark.parametrize(
    ("status", "requeued"), [(0, False), (1, False), (2, False), (75, True), (134, False)]
)
def test_the_job_is_requeued_after_status_75_only(tools, job, status, requeued):
    process = job("bash", "-c", f"exit {status}")
    process.communicate(timeout=30)
    assert process.returncode == status
    assert calls_of(tools, "scontrol") == [["requeue", "4242"]] * requeued


def test_restarts_are_bounded(tools, job):
    for restarts in range(5):
        process = job("bash", "-c", "exit 75", restarts=restarts, most=3)
        _, error = process.communicate(timeout=30)
        assert process.returncode == 75
        assert ("not finished after 3 restarts" in error) == (restarts >= 3)
    assert len(calls_of(tools, "scontrol")) == 3
    assert len(calls_of(tools, "srun")) == 4  # a restart by Slurm itself, after a lost node, counts too


def test_a_failed_requeue_is_reported(tools, job):
    tools.add("scontrol", 'echo "Requested operation is presently disabled for job 4242" >&2; exit 1')
    process = job("bash", "-c", "exit 75")
    _, error = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "could not be requeued. Fix: submit the same command again" in error


SAVING = """
import pathlib, signal, sys, time
def stop(number, frame):
    time.sleep(1)  # the save
    pathlib.Path(sys.argv[1] + "/saved_" + str(time.time())).touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1] + "/ready_" + str(time.time())).touch()
time.sleep(60)
"""


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("numbers", [(signal.SIGUSR1,), (signal.SIGUSR1, signal.SIGTERM)])
def test_a_signal_before_the_time_limit_lets_all_tasks_save(tools, job, tmp_path, numbers):
    """Slurm's second signal arrives within the save."""
    process = job(sys.executable, "-c", SAVING, tmp_path, tasks=2)
    wait_for(lambda: len(list(tmp_path.glob("ready_*"))) == 2)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.3)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert len(list(tmp_path.glob("saved_*"))) == 2
    assert calls_of(tools, "scancel") == [["--signal=TERM", "4242"]]
    assert calls_of(tools, "scontrol") == [["requeue", "4242"]]


def test_a_run_that_fails_while_it_stops_is_not_requeued(tools, job, tmp_path):
    failing = SAVING.replace("sys.exit(75)", "sys.exit(1)")
    process = job(sys.executable, "-c", failing, tmp_path)
    wait_for(lambda: list(tmp_path.glob("ready_*")))
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert calls_of(tools, "scontrol") == []


JOINED = """
import sys, jax
from jaxdiff.distributed import runtime
runtime.start(1)
print(f"{jax.process_index()} of {jax.process_count()}", file=sys.stderr, flush=True)
jax.distributed.shutdown()
"""


@pytest.mark.slow
def test_tasks_of_slurm_are_processes_of_one_computation(tools, job):
    """JAX reads the variables that srun sets."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    assert not any(name in os.environ for name in names)
    process = job("env", "JAXDIFF_DISTRIBUTED=1", "JAX_PLATFORMS=cpu", sys.executable, "-c", JOINED, tasks=2)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert {"0 of 2", "1 of 2"} <= set(error.splitlines())
