"""The command for sweeps: what it refuses, and that stopping it changes nothing."""

import json
import re
import shlex
import signal
import time

import numpy as np
import pytest

from jaxdiff import posthoc_ema, sweep
from jaxdiff.distributed import runtime
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.sweeps.records import LINES
from jaxdiff.sweeps.settings import Axes
from tests import commands
from tests.sweeps.runs import a_run, with_weights
from tests.test_posthoc_ema import mean_of_time, store

GUIDE = (commands.ROOT / "docs/sweeps.md").read_text()
SHELL = "\n".join(re.findall(r"^```bash\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
GRID = ("--guidance", "1,1.5,2", "--steps", "2", "--sampler", "ddim,heun", "--n", "40")


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    """JAX runs already, so that commands can be called in this process."""
    monkeypatch.setattr(runtime, "start", lambda: None)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A run without weights: what is refused here is refused before they are read."""
    workdir = tmp_path_factory.mktemp("empty")
    a_run(workdir)
    return workdir


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    with_weights(workdir, a_run(workdir))
    return workdir


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--guidance", "1,x"], "expected finite numbers"),
        (["--steps", "0"], "expected whole numbers > 0"),
        (["--steps", "200000"], "expected a count from 1 to 100,000"),
        (["--sampler", "dddim"], "--sampler=dddim: expected a known sampler"),
        (["--interval", "3"], "expected noise levels LOW:HIGH"),
        (["--rule", "apg"], "--rule='apg': expected one of own"),
        (["--rule", "cfg_plus_plus", "--guidance", "2"], "--guidance=2: expected a number in"),
        (["--rule", "autoguidance", "--guidance", "2"], "guiding_model=None: expected a guiding model"),
        (["--guiding-model", "nowhere"], "guiding_model='nowhere': expected the folder of a training run"),
        (["--ema", "0.1"], "--ema=0.1: expected a run with PowerEma, got Ema"),
        (["--ema-search", "0.05:0.2"], "--ema=0.05: expected a run with PowerEma, got Ema"),
        (["--ema-search", "0.2:0.05"], "--ema-search='0.2:0.05': expected LOW < HIGH"),
        (["--ema-search", "0.05:0.2", "--guidance", "1,2"], "expected one setting beside it, got 2 settings"),
        (["--ema-search", "0.05:0.2", "--collapse"], "expected one setting beside it, got 40 settings"),
        (["--ema-search", "0.05:0.2", "--ema", "0.1"], "--ema='0.1': expected no other lengths"),
        (
            ["--ema-search", "0.05:0.2", "--ema-evaluations", "1"],
            "--ema-evaluations=1: expected a whole number >= 2",
        ),
        (["--negative", "text=dark"], "--negative='text=dark': expected a condition of the model, got text"),
        (["--negative", "label"], "--negative='label': expected NAME=VALUE or none"),
        (["--negative", "label=12"], "--negative label=12: expected"),
        (["--negative", "label=all"], "--negative='label=all': expected one value, got 10 values"),
        (["--n", "0"], "--n=0: expected a whole number from 1"),
        (["--seed", "-1"], "--seed=-1: expected a whole number from 0"),
        (["--config.evaluation=None"], "expected an evaluation made of metrics"),
        (["--out", "s3://x"], "expected a place on this machine"),
        (["--apply", "slowest"], "--apply='slowest': expected one of"),
        (["--apply", "fastest", "--config.task.image_shape=(8, 8, 1)"], "expected no change of the model"),
    ],
)
def test_mistakes_are_named_before_weights_are_read(empty, words, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        sweep.main(["--workdir", str(empty), *words])
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_run_is_named_with_status_2(tmp_path):
    _, err = commands.run("sweep", "--workdir", str(tmp_path), "--collapse", code=2)
    assert err.startswith("error: --workdir=")
    assert err.count("\n") == 1


def test_the_commands_of_the_guide_parse():
    found = [shlex.split(line)[2:] for line in SHELL.splitlines() if line.strip()]
    assert {module for module, *_ in found} == {"jaxdiff.sweep", "jaxdiff.sample"}
    for module, *words in found:
        if module == "jaxdiff.sweep":
            flags, _ = sweep.parser().parse(words)
            Axes.parse({name: getattr(flags, name) for name in sweep.AXES})
    Axes.parse(dict.fromkeys(sweep.AXES) | sweep.COLLAPSE)


def test_the_guide_names_every_setting_and_choice():
    for name in sweep.AXES:
        assert f"`--{name}`" in GUIDE
    for name in ("best-quality", "best-diversity", "fastest"):
        assert f"`{name}`" in GUIDE


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run with snapshots, whose averages differ by their length."""
    workdir = tmp_path_factory.mktemp("averaged")
    ema = "--config.ema=jaxdiff.training.power_ema:PowerEma(stds=(0.05, 0.1), snapshot_every=400)"
    experiment = a_run(workdir, ema)
    with_weights(workdir, experiment)
    store(workdir, experiment, lambda step, std: mean_of_time(step, std) / 4000)
    return workdir


@pytest.mark.slow
def test_a_search_finds_the_best_of_its_averages_and_samples_none_twice(averaged, tmp_path, capsys):
    words = ["--workdir", str(averaged), "--ema-search", "0.03:0.2", "--ema-evaluations", "4", "--n", "40",
             "--quality", "frechet", "--steps", "2", "--out", str(tmp_path / "sweep")]  # fmt: skip
    sweep.main([*words[:4], "--ema-evaluations", "2", *words[6:]])  # as if it had been stopped here
    before = (tmp_path / "sweep" / LINES).read_bytes()
    capsys.readouterr()
    sweep.main(words)
    said = capsys.readouterr().out
    assert said.count("recorded earlier") == 2
    whole = (tmp_path / "sweep" / LINES).read_bytes()
    assert whole.startswith(before)
    assert whole.count(b"\n") == 1 + 4
    _, *records = map(json.loads, whole.splitlines())
    assert len({record["weights"] for record in records}) == 4
    best = min(records, key=lambda record: record["values"]["frechet"])
    length = best["setting"]["ema"]
    assert f"best EMA length {length:g} of 4 tried" in said
    (line,) = [
        line
        for line in said.splitlines()
        if line.startswith("make a run of it: python -m jaxdiff.posthoc_ema")
    ]
    words = shlex.split(line)[8:-1]
    posthoc_ema.main([*words, str(tmp_path / "made")])
    images = np.load(tmp_path / f"sweep/images/{best['key']}.npz")["images"]
    generator = Generator.load(str(tmp_path / "made"), overrides=(("sampling.steps", "2"),))
    np.testing.assert_array_equal(generator(label=np.arange(40) % 10), images)


def lines_of(folder):
    """The records without what no two runs have in common: times."""
    records = [json.loads(line) for line in (folder / LINES).read_text().splitlines()]
    return [{name: each[name] for name in each if name != "seconds_per_sample"} for each in records]


@pytest.mark.slow
def test_a_killed_sweep_that_is_started_again_equals_an_undisturbed_one(trained, tmp_path):
    words = ("--workdir", str(trained), *GRID)
    commands.run("sweep", *words, "--out", str(tmp_path / "whole"), devices=1)
    killed = commands.start("sweep", *words, "--out", str(tmp_path / "killed"), devices=1)
    file, patience = tmp_path / "killed" / LINES, time.monotonic() + 250
    while not (file.exists() and file.read_bytes().count(b"\n") >= 3) and time.monotonic() < patience:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = lines_of(tmp_path / "killed")
    out, _ = commands.run("sweep", *words, "--out", str(tmp_path / "killed"), devices=1)
    whole = lines_of(tmp_path / "whole")
    assert 3 <= len(before) < len(whole) == 1 + 6
    assert lines_of(tmp_path / "killed") == whole
    assert out.count("recorded earlier") == len(before) - 1
    for file in (tmp_path / "whole/images").iterdir():
        found = [
            np.load(folder / file.name)["images"] for folder in (file.parent, tmp_path / "killed/images")
        ]
        np.testing.assert_array_equal(*found)


@pytest.mark.slow
def test_an_applied_setting_gives_the_swept_images(trained, capsys):
    for choice in ("best-quality", "fastest"):
        sweep.main(["--workdir", str(trained), *GRID, "--interval", "none,0.3:3", "--apply", choice])
        said = capsys.readouterr().out
        assert f"--sampler {choice.replace('-', '')}" in said
        key = json.loads((trained / "sweep/report.json").read_text())["choices"][choice]
        images = np.load(trained / f"sweep/images/{key}.npz")["images"]
        generator = Generator.load(str(trained), sampler=choice)
        np.testing.assert_array_equal(generator(label=np.arange(40) % 10), images)
    # For each of two samplers: two scales with and without an interval, and scale 1, which has none.
    assert said.count("recorded earlier") == 2 * (2 * 2 + 1)
