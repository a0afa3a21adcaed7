"""The command for learned grids: what it refuses, and that its recipe is sampled by name."""

import re

import numpy as np
import pytest

from jaxdiff import learn_grid, sample
from jaxdiff.distributed import runtime
from jaxdiff.errors import RunFailure, UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.sampling import learning
from tests.sweeps.runs import a_run, with_weights

FEW = ("--steps", "3", "--exact-steps", "12", "--n", "8")


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


@pytest.fixture
def trained(tmp_path):
    with_weights(tmp_path, a_run(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "1"], "--steps=1: expected a whole number >= 2"),
        (["--steps", "100"], "steps=100: expected fewer than the 100 of exact samples"),
        (["--n", "0"], "--n=0: expected a whole number >= 1"),
        (["--iterations", "0"], "--iterations=0: expected a whole number >= 1"),
        (["--seed", "-1"], "--seed=-1: expected a 32-bit whole number"),
        (["--sampler", "dddim"], "--sampler=dddim: expected a known sampler"),
        (["--sampler", "ancestral"], "sampling.sampler=.*expected a sampler that adds no noise"),
        (["--guidance", "nan"], "expected"),
        (["--name", "?!"], "--name='.!': expected letters or digits"),
        (["--name", "Heun"], "--name='Heun': expected a name that no sampler has"),
        (["--config.test_data=None", "--config.evaluation=None"], "test_data=None: expected examples"),
        (["--config.task.image_shape=(8, 8, 1)"], "--name='few': expected no change of the model"),
        (["--step", "last"], "--step='last': expected a whole number or best"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_learned_is_refused_before_weights_are_read(empty, words, message):
    config = (empty / "config.json").read_text()
    with pytest.raises(UserError, match=message):
        learn_grid.main(["--workdir", str(empty), "--name", "few", *words])
    assert (empty / "config.json").read_text() == config


@pytest.mark.slow
def test_the_recipe_is_sampled_by_its_name(trained, capsys):
    learn_grid.main(
        ["--workdir", str(trained), "--name", "Few!", "--guidance", "2", "--iterations", "8", *FEW]
    )
    out = capsys.readouterr().out
    before, after = map(float, re.search(r"samples: (\S+) with .*, (\S+) learned", out).groups())
    assert after < before
    assert "sample it with --sampler few" in out
    generator = Generator.load(str(trained), sampler="few")
    assert (generator.recipe.steps, generator.recipe.guidance.scale) == (3, 2.0)
    out = trained / "three.npz"
    sample.main(
        ["--workdir", str(trained), "--sampler", "few", "--label", "3", "--n", "1", "--out", str(out)]
    )
    np.testing.assert_array_equal(np.load(out)["images"], generator(label=3))


@pytest.mark.slow
def test_a_grid_that_is_no_better_is_not_written(trained, monkeypatch):
    config = (trained / "config.json").read_text()
    monkeypatch.setattr(learning, "fit", lambda gradient, log_snr, *_: learning.Fitted(log_snr, np.zeros(1)))
    with pytest.raises(RunFailure, match="expected a grid that is better than the run's"):
        learn_grid.main(["--workdir", str(trained), "--name", "few", "--iterations", "1", *FEW])
    assert (trained / "config.json").read_text() == config
