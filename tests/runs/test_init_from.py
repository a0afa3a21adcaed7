"""Fine-tuning: a run starts as the other model, keeps what fits it, and refuses what does not."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxdiff import config as configs
from jaxdiff import train
from jaxdiff.cli import app as command
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.vector import ClassLabel
from jaxdiff.config import spec
from jaxdiff.errors import UserError
from jaxdiff.runs.start import prepare
from jaxdiff.runs.workdir import init_workdir
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.state import abstract_state, create_state
from jaxdiff.training.transfer import InitFrom
from tests.commands import DIGITS
from tests.runs.fine_tuning import MAP, WIDTH, a_config, a_mesh, build, first_state, same


@pytest.mark.slow
def test_the_same_model_starts_with_the_learned_parameters(old):
    folder, _, params, ema = old
    state = first_state(build(a_config(MAP), folder), a_mesh())
    same(state.params, ema)
    same(state.ema, ema)
    assert int(state.step) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    first = first_state(build(a_config(MAP), folder, ema=False, step=3), a_mesh())
    same(first.params, params)


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("parts", "changes", "options", "message"),
    [
        (MAP, {"task__denoiser__network__levels[0]__width": "24"}, {},
         r"init_from: expected network/\S+ \[.*\] in the other run, got \["),
        (MAP, {"task__denoiser__network__levels[0]__blocks": "2"}, {}, 
         "expected a value in the other run for each parameter, got none for network/decoder_0_block_2/"),
        ({}, {}, {}, r"expected network/stem/kernel \[3, 3, 1, 16\] in the other run, got \[3, 3, 3, 16\]"),
        (MAP | {"label": spec(Continuous, size=1, width=WIDTH)}, {}, {}, "other run alone, got .*parts_label/table"),
        (MAP, {"task__denoiser__parameterization": "jaxdiff.process.prediction:V"}, {}, "the same model at step 0"),
        (MAP, {}, {"step": 5}, "step=5: expected a checkpoint of this step .*choose from: 3, 7"),
        (MAP, {}, {"fresh": ("network/stemm",)}, r"init_from.fresh='network/stemm': expected a pattern"),
    ],
)  # fmt: skip
def test_parameters_that_do_not_fit_are_errors(old, parts, changes, options, message):
    if "kind" in parts:
        pytest.importorskip("flax")
    with pytest.raises(UserError, match=message):
        first_state(build(a_config(parts, **changes), old[0], **options), a_mesh())


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"init_from.workdir=.*expected a folder with config.json"):
        first_state(build(a_config(), tmp_path), a_mesh())
    (tmp_path / "config.json").write_text(configs.to_json(a_config()))
    with pytest.raises(UserError, match="expected a checkpoint"):
        first_state(build(a_config(), tmp_path), a_mesh())


@pytest.mark.slow
def test_fresh_parameters_start_as_in_a_new_run(old):
    folder, _, _, ema = old
    more = MAP | {"label": spec(ClassLabel, num_classes=12, width=WIDTH)}
    with pytest.raises(
        UserError, match=r"expected \S*parts_label/table \[12, 32\] in the other run, got \[10, 32\]"
    ):
        first_state(build(a_config(more), folder), a_mesh())
    new = build(a_config(more), folder, fresh=("conditioner/parts_label",))
    state, plain = (
        first_state(new, a_mesh()),
        create_state(new.task, new.optimizer.make(9), a_mesh(), 0),
    )
    same(state.params["conditioner"]["parts_label"], plain.params["conditioner"]["parts_label"])
    same(state.params["network"], ema["network"])
    without = build(a_config(MAP), folder, fresh=("conditioner/parts_label/*",))
    without = dataclasses.replace(without, task=dataclasses.replace(
        without.task, denoiser=without.task.denoiser.clone(
            conditioner=without.task.denoiser.conditioner.clone(
                conditions={"map": without.task.denoiser.conditioner.conditions["map"]}))))  # fmt: skip
    assert "parts_label" not in first_state(without, a_mesh()).params["conditioner"]


@pytest.mark.slow
def test_a_run_continues_without_its_initial_run(old, tmp_path):
    folder, _, _, ema = old
    experiment, mesh = build(a_config(MAP), folder), a_mesh()
    for name in ("config.json", "classes.json", "data.json"):
        (tmp_path / name).write_text(name)
    prepare(experiment, tmp_path, mesh)
    for name in ("config.json", "classes.json", "data.json"):
        assert (tmp_path / "checkpoints" / "0" / name).read_text() == name
    prepare(dataclasses.replace(experiment, init_from=InitFrom("/nowhere")), tmp_path, mesh)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest() == 0
        optimizer = experiment.optimizer.make(experiment.steps)
        emas = experiment.ema.count
        state = checkpoints.restore(0, abstract_state(experiment.task, optimizer, mesh, emas))
    same(state.params, ema)
    assert int(state.step) == 0
    prepare(dataclasses.replace(experiment, init_from=None), tmp_path / "none", mesh)
    assert not (tmp_path / "none").exists()


def test_a_run_without_init_from_continues_only_without_it(tmp_path):
    config = a_config()
    stored = json.loads(configs.to_json(config))
    del stored["init_from"], stored["optimizer"]["frozen"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    init_workdir(config, str(tmp_path))
    command.override(config, "init_from", "jaxdiff.training.transfer:InitFrom(workdir='x')")
    with pytest.raises(UserError, match=r"got a run with another config .*init_from"):
        init_workdir(config, str(tmp_path))


def test_a_flag_of_the_command_is_a_field_of_the_config():
    assert train.init_from(None) == []
    config = command.load_config(DIGITS, train.init_from("runs/base:500"))
    assert configs.build(config).init_from == InitFrom("runs/base", step=500)
    assert configs.build(command.load_config(DIGITS, train.init_from("a b"))).init_from == InitFrom("a b")
