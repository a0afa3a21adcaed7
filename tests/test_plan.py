"""The plan of a config: counts against the model, bytes against XLA, hours against arithmetic."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxdiff import config as configs
from jaxdiff import plan as planning
from jaxdiff.cli import app as command
from jaxdiff.conditioning.condition import Condition
from jaxdiff.conditioning.nulls import Null
from jaxdiff.cost.chips import CHIPS
from jaxdiff.cost.estimate import estimate, mesh_of, parts
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.lora import Lora
from jaxdiff.models.unet import Level, UNet
from jaxdiff.runs.weights import FileWeights
from jaxdiff.tasks.masking import LossMask
from jaxdiff.training.ema import NoEma
from jaxdiff.training.state import abstract_state
from jaxdiff.training.step import Frozen, jit_train_step, make_train_step
from tests.commands import DIGITS, TINY

ROOT = pathlib.Path(__file__).parent.parent


def small(*overrides, network=None, **unet):
    """configs/digits.py with a network that traces quickly, and changed fields."""
    experiment = configs.build(command.load_config(DIGITS, [tuple(text.split("=", 1)) for text in overrides]))
    network = network or UNet(
        levels=(Level(32, blocks=1),), out_channels=1, middle=ResidualMiddle(None), **unet
    )
    denoiser = experiment.task.denoiser.clone(network=network)
    return dataclasses.replace(experiment, task=dataclasses.replace(experiment.task, denoiser=denoiser))


@pytest.fixture(scope="module")
def plain():
    experiment = small()
    return experiment, estimate(experiment, "h200", 1, 0.4)


def test_parameters_are_those_of_the_model(plain):
    experiment, plan = plain
    params = nn.meta.unbox(jax.eval_shape(experiment.task.init, jax.eval_shape(lambda: jax.random.key(0))))
    assert plan["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert plan["parameter_bytes"] == 4 * plan["parameters"]
    assert sum(plan["parts"].values()) == plan["parameters"]
    assert plan["parts"]["conditioner.label"] == 11 * 128
    assert plan["parts"]["network.stem"] == 9 * 32 + 32


def with_task(experiment, **changes):
    return dataclasses.replace(experiment, task=dataclasses.replace(experiment.task, **changes))


@pytest.mark.slow
def test_a_run_in_bfloat16_without_an_average_is_counted_as_it_is_stored(plain):
    """Kernels and tables of two bytes, everything else of four; the mask beside each image is a byte for each pixel."""
    experiment, before = plain
    half = dataclasses.replace(with_task(experiment, param_dtype="bfloat16"), ema=NoEma())
    plan = estimate(half, "h200", 1, 0.4)
    params = jax.eval_shape(experiment.task.init, jax.eval_shape(lambda: jax.random.key(0)))
    held = sum(leaf.size * (2 if leaf.ndim >= 2 else 4) for leaf in jax.tree.leaves(nn.meta.unbox(params)))
    kept, need = plan["memory"], plan["memory_bytes"]
    assert plan["fits_on"] == [name for name, chip in CHIPS.items() if need <= chip.memory]
    assert kept["parameters"] == kept["gradients"] == kept["update"] == plan["parameter_bytes"] == held
    assert kept["ema"] == 0
    assert kept["optimizer"] == before["memory"]["optimizer"]  # Adam's averages are float32 in both
    masked = estimate(with_task(experiment, mask=LossMask()), "h200", 1, 0.4)
    pixels = experiment.batch_size * 8 * 8
    assert masked["memory"]["batch"] == before["memory"]["batch"] + pixels * (
        1 + 4
    )  # and its weight for each


def test_lora_is_counted_as_its_factors_and_a_frozen_network(plain):
    experiment, before = plain
    weights = {
        name: FileWeights("nowhere", module=name, dtype="float16") for name in ("network", "conditioner")
    }
    changes = with_task(experiment, pretrained=weights, lora=Lora(rank=2, targets=("network/stem",)))
    plan = estimate(changes, "h200", 1, 0.4)
    assert plan["parameters"] == 2 * 9 * 1 + 2 * 32
    assert sum(plan["frozen_parameters"].values()) == before["parameters"]
    assert before["parameter_bytes"] / 2 < plan["memory"]["frozen"] < 0.52 * before["parameter_bytes"]
    assert plan["multiply_adds"] == before["multiply_adds"]


def test_numbered_parts_are_summed():
    names = (
        "encoder_0_block_0",
        "encoder_0_block_1",
        "encoder_1_block_0",
        "down_0",
        "down_1",
        "stem",
        "norm_out",
    )
    params = {
        "network": {name: {"kernel": jnp.zeros((2, 3))} for name in names},
        "process": {"slope": jnp.zeros(4)},
    }
    assert parts(params) == {
        "network.encoder_0": 12, "network.encoder_1": 6, "network.down": 12, "network.stem": 6,
        "network.norm_out": 6, "process": 4,
    }  # fmt: skip


class Counted(nn.Module):
    """A network of known cost: a 3 x 3 convolution, a strided one, a transposed one and a 1 x 1 one."""

    width: int = 8

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        h = nn.Conv(self.width, (3, 3), name="first")(x) + embeddings.vector[:, None, None, : self.width]
        h = nn.Conv(2 * self.width, (3, 3), strides=2, name="down")(jnp.sin(h))
        h = nn.ConvTranspose(self.width, (3, 3), strides=(2, 2), name="up")(jnp.sin(h))
        return nn.Conv(1, (1, 1), name="head")(jnp.sin(h))


class Measured(Condition):
    """A condition of seven numbers, and one matrix."""

    drop_rate: float = 0.1
    null: Null = "zero"

    @nn.compact
    def __call__(self, values, drop):
        return Embeddings(vector=jnp.where(drop[:, None], 0.0, nn.Dense(128, name="dense")(values)))

    @nn.nowrap
    def example(self, batch, data_shape=None):
        return jnp.zeros((batch, 7))


def test_multiply_adds_of_a_network_of_known_cost():
    experiment = small(network=Counted())
    denoiser = experiment.task.denoiser
    both = denoiser.conditioner.clone(conditions={**denoiser.conditioner.conditions, "size": Measured()})
    task = dataclasses.replace(experiment.task, denoiser=denoiser.clone(conditioner=both))
    plan = estimate(dataclasses.replace(experiment, task=task))
    first, down, up, head = 64 * 9 * 8, 16 * 9 * 8 * 16, 16 * 9 * 16 * 8, 64 * 8
    noise = 2 * 16 * 128 + 128 * 128  # sinusoids of 16 frequencies and two dense layers
    weights = 9 * 8 + 9 * 8 * 16 + 9 * 16 * 8 + 8 + (8 + 16 + 8 + 1)
    assert plan["parameters"] == weights + 32 * 128 + 128 * 128 + 2 * 128 + 11 * 128 + 8 * 128
    network, size = first + down + up + head + noise, 7 * 128
    assert plan["multiply_adds"] == network + size
    # Training needs no gradients of the image, the sinusoids and the seven numbers.
    assert plan["training_multiply_adds"] == 3 * (network + size) - first - 2 * 16 * 128 - size
    calls = experiment.sampling.calls(denoiser.process)
    counts = {"calls": calls, "whole_calls": calls, "evaluations": 2.0, "guiding_model_evaluations": 0.0}
    assert plan["sampling"] == counts
    # Conditional and unconditional embeddings are computed once; guidance evaluates the network on both.
    assert plan["sampling_multiply_adds"] == 2 * calls * network + 2 * size


def test_hours_are_operations_over_peak(plain):
    experiment, plan = plain
    seconds = 2 * plan["training_multiply_adds"] * experiment.batch_size / (0.4 * 494.7e12)
    assert plan["step_seconds"] == pytest.approx(seconds, rel=1e-4)
    assert plan["hours"] == pytest.approx(seconds * experiment.steps / 3600, rel=1e-4)
    assert plan["device_hours"] == plan["hours"]
    spread = estimate(experiment, "h200", 8, 0.2)
    assert spread["hours"] == pytest.approx(plan["hours"] / 8 * 2)
    assert spread["device_hours"] == pytest.approx(2 * plan["device_hours"])
    assert spread["sampling_seconds"] == pytest.approx(2 * plan["sampling_seconds"])


@pytest.mark.slow
def test_half_precision_runs_at_its_own_rate_and_keeps_less(plain):
    _, plan = plain
    old, new = (estimate(small(dtype="bfloat16"), chip) for chip in ("v100", "a100"))
    by_type = new["multiply_adds_by_type"]
    assert new["multiply_adds"] == plan["multiply_adds"] == sum(by_type.values())
    assert by_type["bfloat16"] > 0.9 * new["multiply_adds"]
    assert new["memory"]["activations"] < 0.8 * plan["memory"]["activations"]
    # A V100 has no bfloat16 and runs at the float32 rate.
    assert old["step_seconds"] == pytest.approx(plan["step_seconds"] * 494.7 / 15.7)
    assert 156 / 15.7 < old["step_seconds"] / new["step_seconds"] < 312 / 15.7


@pytest.mark.slow
def test_remat_pays_for_memory_with_multiply_adds(plain):
    _, plan = plain
    remat = estimate(small(remat=True))
    assert remat["multiply_adds"] == plan["multiply_adds"]
    assert 1.15 < remat["training_multiply_adds"] / plan["training_multiply_adds"] < 4 / 3
    assert remat["memory"]["activations"] < 0.75 * plan["memory"]["activations"]


@pytest.mark.slow
def test_devices_and_micro_batches_split_the_activations(plain):
    _, plan = plain
    for split in (estimate(small(), devices=4), estimate(small("accumulation=4"))):
        fraction = split["memory"]["activations"] / plan["memory"]["activations"]
        assert fraction == pytest.approx(1 / 4, rel=0.05)
        assert split["memory"]["batch"] == pytest.approx(plan["memory"]["batch"] / split["devices"], rel=0.01)


def test_fsdp_splits_the_state_on_devices_that_need_not_exist():
    wide = UNet(levels=(Level(128, blocks=1),), out_channels=1, middle=ResidualMiddle(None))
    full, split = (
        estimate(small(f"mesh.fsdp={n}", "batch_size=256", network=wide), devices=256) for n in (1, 8)
    )
    assert full["mesh"] == {"data": 256, "fsdp": 1, "tensor": 1}
    assert split["mesh"] == {"data": 32, "fsdp": 8, "tensor": 1}
    for name in ("parameters", "ema", "optimizer", "gradients"):
        assert 1 / 8 < split["memory"][name] / full["memory"][name] < 1 / 6  # small arrays are not split
    assert split["memory"]["activations"] == full["memory"]["activations"]


def test_a_tensor_axis_splits_state_and_activations_but_not_the_batch(plain):
    _, plan = plain
    split = estimate(small("mesh.tensor=2"))
    assert split["devices"] == 2
    assert split["memory"]["activations"] == plan["memory"]["activations"] // 2
    assert split["memory"]["batch"] == plan["memory"]["batch"]
    assert 0.5 < split["memory"]["parameters"] / plan["memory"]["parameters"] < 0.6
    assert split["step_seconds"] == pytest.approx(plan["step_seconds"] / 2)


def test_no_array_of_the_models_size_is_allocated():
    huge = UNet(levels=(Level(2**16, blocks=1),), out_channels=1, middle=ResidualMiddle(None), remat=True)
    plan = estimate(small(network=huge), "h200", 64)
    assert plan["parameters"] > 1e11
    assert not plan["fits"]
    for flag in ("mesh.fsdp=64", "task.param_dtype=bfloat16", "ema='jaxdiff.training.ema:NoEma()'"):
        assert any(fix.startswith(f"--config.{flag} ") for fix in plan["fix"])


@pytest.mark.slow
def test_the_suggested_changes_make_a_plan_fit():
    plan = estimate(small("batch_size=1048576"), "v100")
    assert not plan["fits"]
    remat, accumulation = plan["fix"]
    assert remat.startswith("--config.task.denoiser.network.remat=true ")
    path, number = re.fullmatch(r"--config\.(\w+)=(\d+) .*", accumulation).groups()
    better = estimate(small("batch_size=1048576", f"{path}={number}"), "v100")
    assert better["fits"]
    assert better["fix"] == []


@pytest.mark.slow
def test_the_state_has_the_bytes_of_the_compiled_step_and_the_rest_is_near():
    experiment = small("batch_size=256", network=Counted(32))
    plan, mesh = estimate(experiment), experiment.mesh.make(jax.devices()[:1])
    task, optimizer = experiment.task, experiment.optimizer.make(experiment.steps)
    step = make_train_step(task, optimizer, experiment.ema, experiment.seed)
    abstract = abstract_state(task, optimizer, mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((experiment.batch_size, 8, 8, 1), jnp.uint8),
        "label": jax.ShapeDtypeStruct((experiment.batch_size,), jnp.int32),
    }
    compiled = (
        jit_train_step(step, abstract, mesh).lower(abstract, batch, Frozen()).compile().memory_analysis()
    )
    kept = plan["memory"]
    state = sum(kept[name] for name in ("parameters", "ema", "optimizer"))
    examples = experiment.batch_size * (8 * 8 + 4)
    assert compiled.argument_size_in_bytes == pytest.approx(state + examples, rel=1e-3)
    planned = plan["memory_bytes"] - state - kept["batch"]
    assert 0.4 < planned / compiled.temp_size_in_bytes < 1.5


def run(capsys, *flags):
    planning.main(["--config", DIGITS, *TINY, *flags])
    return capsys.readouterr().out


def test_json_has_the_fields_of_the_documentation(capsys):
    plan = json.loads(run(capsys, "--json", "--chip", "tpu-v4", "--devices", "4"))
    assert {"parameters", "multiply_adds", "memory_bytes", "hours"} <= set(plan)
    assert plan["memory_bytes"] <= sum(plan["memory"].values())
    assert plan["chip_memory_bytes"] == 30.75 * 2**30
    assert plan["devices"] == 4
    estimated = (ROOT / "docs" / "plan.md").read_text().partition("\n## Compiled\n")[0]
    named = set(re.findall(r"^\| `(\w+)`", estimated, re.MULTILINE))
    assert named == set(plan)


def test_the_table_shows_the_same_figures(plain):
    _, plan = plain
    text = planning.table(plan)
    assert re.search(rf"^parameters +{plan['parameters'] / 1e3:.1f} k ", text, re.MULTILINE)
    assert re.search(rf"^  forward +{plan['multiply_adds'] / 1e6:.4g} M  100% float32$", text, re.MULTILINE)
    assert re.search(r"^  of h200 +141 GB  fits$", text, re.MULTILINE)
    assert "Fix: " not in text


def test_the_default_output_is_a_table(capsys):
    text = run(capsys, "--config.batch_size=1000000", "--chip", "t4")
    assert "DOES NOT FIT" in text
    assert "\nFix: --config.task.denoiser.network.remat=true" in text


MISTAKES = {
    "chip": (
        ["--chip", "h20"],
        r"--chip=h20: expected a known chip, got 'h20'. Fix: use one of b200, h200, ",
    ),
    "utilisation 0": (["--utilisation", "0"], r"--utilisation=0.0: expected a fraction of the peak"),
    "utilisation 1.1": (["--utilisation", "1.1"], r"--utilisation=1.1: expected a fraction of the peak"),
    "mesh": (
        ["--devices", "12", "--config.mesh.fsdp=8"],
        r"config.mesh.fsdp=8: .* 12 devices, got rest x 8 x 1. Fix: ",
    ),
    "no device": (["--devices", "0"], r"--devices=0: expected a number >= 1"),
    "batch": (
        ["--devices", "3"],
        r"config.batch_size=32: expected a multiple of 3 for 3 devices .* Fix: use 30 or 33",
    ),
    "small batch": (["--devices", "64"], r"config.batch_size=32: expected a multiple of 64 .* Fix: use 64"),
    "field": (["--config.batch_sise=3"], r"did you mean --config.batch_size"),
}


@pytest.mark.parametrize(("flags", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_an_error(capsys, flags, expected):
    with pytest.raises(UserError, match=expected):
        run(capsys, *flags)


def test_the_mesh_may_be_larger_than_any_machine():
    mesh = mesh_of(MeshShape(fsdp=8, tensor=4), 4096)
    assert dict(mesh.shape) == {"data": 128, "fsdp": 8, "tensor": 4}
    assert mesh_of(MeshShape(fsdp=8)).size == 8
    assert mesh_of(MeshShape(data=2, fsdp=2, tensor=2)).size == 8


def test_chips_have_plausible_figures():
    for name, chip in CHIPS.items():
        assert chip.memory >= 16e9
        assert chip.flops["float32"] <= max(chip.flops.values())
        assert name == "cpu" or chip.flops["float32"] > 8e12
    assert CHIPS["h100"].flops["bfloat16"] / CHIPS["a100"].flops["bfloat16"] == pytest.approx(3.17, abs=0.01)


def test_help_needs_no_jax():
    program = "import jaxdiff.plan, sys; print('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "False"


MEASURED = ("--save-seconds=2", "--write-seconds=60", "--restore-seconds=30", "--start-seconds=300")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--mtbf=3",), "--save-seconds"),
        (("--mtbf=3", *MEASURED[:3]), "--start-seconds"),
        (MEASURED, "--mtbf"),
        (("--step-seconds=1",), "--mtbf"),
        (("--mtbf=often", *MEASURED), "--mtbf='often'"),
        (("--mtbf=0", *MEASURED), "--mtbf=0"),
        (("--mtbf=nan", *MEASURED), "--mtbf='nan'"),
        (("--mtbf=3", *MEASURED, "--save-seconds=0"), "--save-seconds=0"),
        (("--mtbf=3", *MEASURED, "--write-seconds=-1"), "--write-seconds=-1"),
        (("--mtbf=3", *MEASURED, "--seed=-1"), "--seed=-1"),
    ],
)
def test_goodput_needs_all_that_it_depends_on(words, named):
    with pytest.raises(UserError, match="Fix: ") as error:
        planning.main(["--config", DIGITS, *words])
    assert str(error.value).startswith(named)


@pytest.mark.slow
def test_the_hours_with_failures_are_those_without_over_the_goodput(plain, capsys, monkeypatch):
    experiment, plan = plain
    monkeypatch.setattr("jaxdiff.cost.estimate.estimate", lambda *_: dict(plan))
    words = ["--config", DIGITS, "--mtbf=8", *MEASURED, "--step-seconds=0.5", "--config.checkpoint_every=777"]
    planning.main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)["goodput"]
    assert found["mtbf_hours"] == 8
    assert found["hours"] * found["goodput"] == pytest.approx(experiment.steps * 0.5 / 3600)
    assert found["goodput"] == max(row["goodput"] for row in found["intervals"])
    assert 777 in [row["checkpoint_every"] for row in found["intervals"]]
    planning.main(words)
    shown = capsys.readouterr().out
    assert "checkpoint_every 777" in shown
    assert f"recommended  {found['checkpoint_every']}" in re.sub(" +", "  ", shown)


def test_a_sampler_that_reads_the_value_of_an_augmented_condition_is_planned():
    """Data consistency compares samples with the small photograph alone, and training adds a noise level to it."""
    plan = estimate(configs.build(command.load_config(str(ROOT / "configs" / "photos_sr.py"), [])))
    calls = plan["sampling"]["calls"]
    assert plan["sampling_multiply_adds"] == pytest.approx(calls * plan["multiply_adds"], rel=0.01)
