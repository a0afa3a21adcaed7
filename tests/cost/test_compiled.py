"""Compiled programs: the step is that of training, and figures are closed forms of it."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from jaxdiff import config as configs
from jaxdiff import train
from jaxdiff.cli import app as command
from jaxdiff.cost import compiled, executable, hlo
from jaxdiff.cost.memory import shard_bytes
from jaxdiff.cost.topologies import KINDS, Topology
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.errors import UserError
from jaxdiff.training import loop
from jaxdiff.training.state import abstract_state
from tests.commands import DIGITS, ROOT, TINY


def tiny(*overrides):
    words = [word.removeprefix("--config.") for word in (*TINY, *overrides)]
    config = command.load_config(DIGITS, [tuple(word.split("=", 1)) for word in words])
    return config, configs.build(config)


class Lowered(Exception):
    """Raised in place of compiling."""


@pytest.mark.parametrize("overrides", [(), ("mesh.fsdp=2", "accumulation=2")], ids=["data", "fsdp"])
def test_the_step_is_the_program_that_a_run_compiles(overrides, monkeypatch, tmp_path):
    config, experiment = tiny(*overrides)
    make, seen = loop.jit_train_step, []

    def recording(*arguments):
        jitted = make(*arguments)

        def lower(*arguments):
            seen.append(jitted.lower(*arguments).as_text())
            raise Lowered

        return types.SimpleNamespace(lower=lower)

    monkeypatch.setattr(loop, "jit_train_step", recording)
    with pytest.raises(Lowered):
        train.train(config, str(tmp_path / "run"))
    assert compiled.lower_step(experiment, experiment.mesh.make()).as_text() == seen[0]


@pytest.fixture(scope="module")
def step():
    _, experiment = tiny("mesh.fsdp=4")
    mesh = experiment.mesh.make()
    lowered = compiled.lower_step(experiment, mesh)
    return experiment, mesh, lowered, compiled.compile_lowered(lowered)


def test_arguments_are_the_state_and_the_batch_and_the_state_is_donated(step):
    experiment, mesh, _, program = step
    held = compiled.memory(program.program.memory_analysis())
    optimizer = experiment.optimizer.make(experiment.steps)
    state = shard_bytes(abstract_state(experiment.task, optimizer, mesh, experiment.ema.count))
    images = experiment.batch_size // mesh.size * (8 * 8 + 4)
    assert held["arguments"] == state + images
    assert held["aliased"] == state
    assert state <= held["outputs"] < 1.01 * state


def test_a_report_adds_up(step):
    *_, program = step
    found = compiled.report(program, Topology.parse("v5e:2x4"), 1e9)
    held = found["memory"]
    used = held["arguments"] + held["outputs"] - held["aliased"] + held["temporaries"] + held["code"]
    assert found["memory_bytes"] == used
    assert found["peak_fraction"] == pytest.approx(1e9 / 197e12 / found["seconds"])
    assert found["collectives"]["all-reduce"]["bytes"] > found["memory"]["arguments"] / 5  # the gradients
    assert found["compile_seconds"] > 0
    assert 0 <= found["relayout_fraction"] < 1


def test_the_fields_of_a_report_are_documented(step):
    *_, program = step
    text = (ROOT / "docs" / "plan.md").read_text().partition("\n## Compiled\n")[2]
    found = compiled.report(program, Topology.parse("v5e:2x4"), 1e9)
    assert [name for name in (*found, *found["memory"], *found["traffic"]) if f"`{name}`" not in text] == []


def test_the_compilers_time_is_used_only_if_it_is_possible():
    kind = KINDS["v5e"]
    found = compiled.seconds(kind, 197e12, 0, 1.5)
    assert (found["seconds"], found["estimated_by"], found["roofline_seconds"]) == (1.5, "compiler", 1.0)
    for impossible in (-999.0, 0.0, 0.5):
        found = compiled.seconds(kind, 197e12, 2 * kind.bandwidth, impossible)
        assert (found["seconds"], found["estimated_by"]) == (2.0, "roofline")


CYCLES = """HloModule m
ENTRY %main (p: f32[4]) -> f32[4] {{
  %p = f32[4] parameter(0)
  %s = f32[4] sine(%p), backend_config={{"window_config":{{"estimated_cycles":"120"}}}}
  ROOT %t = f32[4] sine(%s), backend_config={{"window_config":{{"estimated_cycles":"{}"}}}}
}}
"""


def test_cycles_are_summed_unless_one_is_unknown():
    assert compiled.cycles(hlo.parse(CYCLES.format(3))) == 123
    assert compiled.cycles(hlo.parse(CYCLES.format(2**63 - 1))) is None


def test_what_a_program_needed_is_read_from_the_message():
    first = "RESOURCE_EXHAUSTED: ... required for HLO temporaries (512.00G) exceeds available HBM (15.75G)."
    second = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16.50G of 15.75G hbm. Exceeded by"
    )
    assert compiled.exceeded(first) == 512 * 2**30
    assert compiled.exceeded(second) == int(16.5 * 2**30)
    assert compiled.exceeded("RESOURCE_EXHAUSTED") is None


def test_a_program_that_does_not_fit_differs_from_other_failures():
    def failing(message):
        def compile(compiler_options):
            raise jax.errors.JaxRuntimeError(message)

        return types.SimpleNamespace(compile=compile)

    with pytest.raises(compiled.TooLarge, match="RESOURCE") as error:
        compiled.compile_lowered(
            failing("RESOURCE_EXHAUSTED: temporaries (32.00G) exceeds available HBM (15.75G).")
        )
    assert error.value.needed == 32 * 2**30
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compiled.compile_lowered(failing("INTERNAL: something else"))


def test_an_executable_gives_the_same_bits_as_the_program(step, tmp_path):
    mesh = MeshShape().make()
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    lowered = jax.jit(lambda tree: {"y": tree["x"] @ tree["x"].T}).lower(
        {"x": jax.ShapeDtypeStruct((16, 8), np.float32, sharding=place)}
    )
    program, path = lowered.compile(), tmp_path / "step.bin"
    executable.write(program, path, {"topology": "here"})
    assert executable.about(path) == {**executable.versions(), "topology": "here"}
    loaded = executable.load(path, lowered, mesh.devices.flat)
    x = jax.device_put(np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32), place)
    assert np.array_equal(loaded({"x": x})["y"], program({"x": x})["y"])


def test_an_executable_of_another_version_is_refused(tmp_path):
    path = tmp_path / "step.bin"
    path.write_bytes(b'{"jax": "0.1", "jaxlib": "0.1"}\nabc')
    with pytest.raises(UserError, match=r"expected jax .*, got '0.1'. Fix: compile it again"):
        executable.load(path, None, [])


def test_a_batch_that_does_not_divide_is_an_error():
    _, experiment = tiny()
    with pytest.raises(UserError, match=r"config.batch_size=33: expected a multiple of 8"):
        compiled.lower_step(dataclasses.replace(experiment, batch_size=33), MeshShape().make())
