"""Programs compiled for TPUs that are not there, by libtpu. TEST_LIBTPU is a folder where it is installed apart:
beside JAX it would make every process look for TPUs."""

import importlib.util
import json
import os

import pytest

from tests.commands import DIGITS, TINY, run

APART = os.environ.get("TEST_LIBTPU", "")
pytestmark = pytest.mark.skipif(
    not APART and importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the compiler of TPUs, is not installed",
)


def plan(*words, code=0):
    path = os.pathsep.join(filter(None, (APART, os.environ.get("PYTHONPATH", ""))))
    environment = {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    return run("plan", "--config", DIGITS, *TINY, *words, "--json", code=code, **environment)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    file = tmp_path_factory.mktemp("compiled") / "step.bin"
    out, _ = plan("--compile=v5e:2x2", "--compile-sampler=4", "--quick", f"--executable={file}")
    return json.loads(out), file


def test_a_step_is_compiled_for_chips_that_are_not_there(compiled):
    found, file = compiled
    step = found["train_step"]
    assert step["fits"]
    assert found["devices"] == 4
    assert step["memory_bytes"] < step["usable_bytes"] == int(15.75 * 2**30)
    # The compiler counts no multiplications with padding, we do; gradients are those of the same layers.
    assert 0.5 < step["compiler_flops"] / step["flops"] < 1.1
    gradients = step["collectives"]["all-reduce"]
    assert gradients["bytes"] >= 4 * 70_000
    assert json.loads(file.read_bytes().partition(b"\n")[0])["topology"] == "v5e:2x2"


def test_the_sampler_is_compiled_too(compiled):
    sampler = compiled[0]["sampler"]
    assert sampler["fits"]
    assert sampler["memory"]["arguments"] < compiled[0]["train_step"]["memory"]["arguments"]
    assert sampler["estimated_by"] == "roofline"  # its loop counts once in the compiler's estimate


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "devices"), [(("--compile=v5p:2x2x1", "--slices=2"), 8), (("--compile=v6e:2x2",), 4)]
)
def test_other_chips_and_several_slices_are_compiled_for(words, devices):
    found = json.loads(plan(*words, "--quick")[0])
    assert found["devices"] == devices
    assert found["train_step"]["fits"]
    assert ("between slices" in found["train_step"]["collectives"]) == (devices == 8)
