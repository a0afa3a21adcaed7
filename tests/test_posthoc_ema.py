"""The command for post-hoc EMA, on snapshots with known averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import config, posthoc_ema
from jaxdiff.cli import app as command
from jaxdiff.distributed import runtime
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.runs import workdir as workdirs
from jaxdiff.training.ema import Ema
from jaxdiff.training.power_ema import PowerEma, exponent
from jaxdiff.training.snapshots import Snapshots
from jaxdiff.training.state import abstract_state
from jaxdiff.training.step import TrainState
from tests.commands import DIGITS, TINY

STDS = (0.05, 0.1)
STEPS = (600, 1000)


def run_folder(workdir, ema):
    """The config of a run that tracks `ema`, without a run."""
    overrides = [(word.removeprefix("--config.").split("=", 1)) for word in TINY]
    stored = command.load_config(DIGITS, [(name, text) for name, text in overrides])
    stored["ema"] = config.describe(ema)
    workdirs.init_workdir(stored, str(workdir))
    return config.build(stored)


def parameters(experiment):
    return abstract_state(
        experiment.task, experiment.optimizer.make(experiment.steps), experiment.mesh.make()
    ).ema


def mean_of_time(steps, std):
    """The average of parameters that grow by 1 in each step."""
    return steps * (exponent(std) + 1) / (exponent(std) + 2)


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """JAX is running already."""
    monkeypatch.setattr(runtime, "start", lambda: None)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run whose parameters all equal the step number, with its snapshots."""
    tmp_path = tmp_path_factory.mktemp("kept")
    experiment = run_folder(tmp_path / "run", PowerEma(STDS, snapshot_every=400))
    abstract = parameters(experiment)

    def filled(value):
        return jax.tree.map(
            lambda leaf: jax.device_put(np.full(leaf.shape, value, leaf.dtype), leaf.sharding), abstract
        )

    with Snapshots(tmp_path / "run") as snapshots:
        for step in STEPS:
            first, second = (filled(mean_of_time(step, std)) for std in STDS)
            snapshots.save(TrainState(jnp.int32(step), (), first, (), extra_emas=(second,)), step)
    return tmp_path


def test_the_new_folder_has_the_average_and_can_be_sampled_from(kept, capsys):
    out = kept / "run-0.08"
    posthoc_ema.main(["--workdir", str(kept / "run"), "--std", "0.08", "--out", str(out)])
    assert "step 1000" in capsys.readouterr().out
    generator = Generator.load(str(out))
    for leaf in jax.tree.leaves(generator.params):
        np.testing.assert_allclose(leaf, mean_of_time(1000, 0.08), rtol=8e-3)
    with pytest.raises(UserError, match=r"--out=.*expected a new folder"):
        posthoc_ema.main(["--workdir", str(kept / "run"), "--std", "0.08", "--out", str(out)])


def test_invalid_flags_are_errors(kept):
    out = str(kept / "out")
    with pytest.raises(UserError, match=r"std=0\.4"):
        posthoc_ema.main(["--workdir", str(kept / "run"), "--std", "0.4", "--out", out])
    with pytest.raises(UserError, match=r"step=20: expected a snapshot"):
        posthoc_ema.main(["--workdir", str(kept / "run"), "--std", "0.08", "--step", "20", "--out", out])
    with pytest.raises(UserError, match="no changes of the run's config"):
        posthoc_ema.main(["--workdir", str(kept / "run"), "--std", "0.08", "--out", out, "--config.steps=3"])
    run_folder(kept / "plain", Ema())
    with pytest.raises(UserError, match="a run with PowerEma, got one with Ema"):
        posthoc_ema.main(["--workdir", str(kept / "plain"), "--std", "0.08", "--out", out])
    assert not (kept / "out").exists()
