"""The GKE launcher: the manifest against the rules of Kubernetes, and the failures of a fake `kubectl`."""

import re
import shlex

import pytest
import yaml

from tests.launch.tools import LAUNCH, flags

FLAGS = {
    "name": "digits", "accelerator": "v6e", "topology": "4x4", "image": "images/jaxdiff:1",
    "config": "configs/digits.py", "workdir": "gs://bucket/digits",
}  # fmt: skip

REFUSED = {
    "quota": 'Error from server (Forbidden): jobsets "digits" is forbidden: exceeded quota: tpus',
    "not found": 'error: no matches for kind "JobSet" in version "jobset.x-k8s.io/v1alpha2"',
    "login": "error: You must be logged in to the server (Unauthorized)",
    "exists": 'Error from server (AlreadyExists): jobsets.jobset.x-k8s.io "digits" already exists',
    "unreachable": "Unable to connect to the server: dial tcp: i/o timeout",
}

ODD = 'it\'s $HOME $$ $(HOME) `id` "*" \\ \\n @NAME@ # &\ta\nb é: - {}'


@pytest.fixture
def manifest(tools):
    """A function that returns the manifest that kubectl receives, and its arguments."""
    tools.add("kubectl", 'cat >"$FAKE/manifest"')

    def create(*words, **changed):
        finished = tools.run(LAUNCH / "gke_jobset.sh", *flags(**{**FLAGS, **changed}), *words)
        assert finished.returncode == 0, finished.stderr
        assert tools.called() == [["kubectl", "create", "--filename=-"]]
        return yaml.safe_load((tools.folder / "manifest").read_text())

    return create


def job_of(manifest):
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return replicated, replicated["template"]["spec"], replicated["template"]["spec"]["template"]["spec"]


def expanded(text, variables=()):
    """A text after the expansion of Kubernetes: $(NAME) of a known variable, and one dollar of two."""
    known = dict(variables)
    return re.sub(
        r"\$\$|\$\((\w+)\)",
        lambda match: "$" if match[0] == "$$" else str(known.get(match[1], match[0])),
        text,
    )


@pytest.mark.parametrize(
    ("topology", "chips", "hosts"),
    [("1x1", 1, 1), ("2x2", 4, 1), ("2x4", 8, 1), ("4x4", 4, 4), ("4x8", 4, 8), ("16x16", 4, 64)],
)
@pytest.mark.parametrize(("accelerator", "name"), [("v5e", "tpu-v5-lite-podslice"), ("v6e", "tpu-v6e-slice")])
def test_the_pods_of_a_slice_have_all_its_chips(manifest, topology, chips, hosts, accelerator, name):
    _, job, pod = job_of(manifest(topology=topology, accelerator=accelerator))
    rows, columns = map(int, topology.split("x"))
    assert job["parallelism"] == job["completions"] == hosts
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert chips * hosts == rows * columns
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": name,
        "cloud.google.com/gke-tpu-topology": topology,
    }


def test_a_slice_of_small_hosts_and_spot_nodes(manifest):
    replicated, job, pod = job_of(manifest("--spot", topology="2x4", chips_per_host=4, slices=3))
    assert (replicated["replicas"], job["parallelism"]) == (3, 2)
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


def outcome(manifest, status, restarts=0):
    """What becomes of a JobSet when a container ends with `status`, by the rules of Job and JobSet."""
    policy = manifest["spec"]["failurePolicy"]
    _, job, pod = job_of(manifest)
    assert pod["restartPolicy"] == "Never", "a pod failure policy needs this"
    assert job["backoffLimit"] == 0
    if status == 0:
        return "finished"
    reason = "BackoffLimitExceeded"
    for rule in job["podFailurePolicy"]["rules"]:
        codes = rule["onExitCodes"]
        assert codes["containerName"] in [container["name"] for container in pod["containers"]]
        assert (rule["action"], codes["operator"]) == ("FailJob", "In")
        if status in codes["values"]:
            reason = "PodFailurePolicy"
    for rule in policy["rules"]:
        if reason in rule["onJobFailureReasons"]:
            return rule["action"]
    return "RestartJobSet" if restarts < policy["maxRestarts"] else "FailJobSet"


def test_all_pods_are_restarted_unless_the_command_is_wrong(manifest):
    found = manifest(max_restarts="08")
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 8
    for status in (
        75,
        1,
        134,
        137,
        143,
    ):  # saved, a failure, an abort, no memory or a lost node, ended too late
        assert outcome(found, status) == "RestartJobSet"
        assert outcome(found, status, restarts=8) == "FailJobSet"
    assert outcome(found, 2) == "FailJobSet"


def test_what_is_given_reaches_the_training_unchanged(manifest):
    _, _, pod = job_of(manifest(f"--env=ODD={ODD}", "--", f"--config.x={ODD}", "--config.y="))
    (container,) = pod["containers"]
    assert all(isinstance(word, str) for word in container["command"])
    variables = {each["name"]: expanded(each["value"]) for each in container["env"]}
    assert variables == {"JAXDIFF_DISTRIBUTED": "1", "ODD": ODD}
    assert [expanded(word, variables) for word in container["command"]] == [
        "python", "-m", "jaxdiff.train", "--config", "configs/digits.py", "--workdir", "gs://bucket/digits",
        f"--config.x={ODD}", "--config.y=",
    ]  # fmt: skip


def test_a_single_pod_waits_for_no_other(manifest):
    _, _, pod = job_of(manifest(topology="2x2"))
    assert pod["containers"][0]["env"] == []


def test_the_dry_run_prints_what_is_created(manifest, tools):
    created = manifest("--spot")
    printed = tools.run(LAUNCH / "gke_jobset.sh", *flags(**FLAGS), "--spot", "--dry-run").stdout
    assert len(tools.called()) == 1
    first, *lines, last = printed.splitlines()
    assert shlex.split(first) == ["kubectl", "create", "--filename=-", "<<YAML"]
    assert last == "YAML"
    assert yaml.safe_load("\n".join(lines)) == created


@pytest.mark.spread(2)
@pytest.mark.parametrize("reason", REFUSED)
def test_a_refused_jobset_is_one_line_after_kubectls_own(tools, reason):
    tools.add("kubectl", f"echo {shlex.quote(REFUSED[reason])} >&2; exit 1")
    finished = tools.run(LAUNCH / "gke_jobset.sh", *flags(**FLAGS))
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[0] == REFUSED[reason]
    assert finished.stderr.splitlines()[1].startswith("error: ")


@pytest.mark.parametrize(
    "changed",
    [
        {"accelerator": "v4"},
        {"topology": "3x3"},
        {"slices": 0},
        {"chips_per_host": 3},
        {"image": "a\x1b[2Jb"},
        {"name": "a" * 41},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_slices_that_do_not_exist_are_refused(tools, changed):
    tools.add("kubectl")
    finished = tools.run(LAUNCH / "gke_jobset.sh", *flags(**{**FLAGS, **changed}))
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: ")
    assert "Fix: " in finished.stderr
    assert "\x1b" not in finished.stderr
    assert tools.called() == []
