import ctypes
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from jaxdiff.distributed import runtime
from jaxdiff.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent.parent
NAMES = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")


def fresh(code, **variables):
    """Run `code` in a new process; returns the words it prints."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    text = f"from jaxdiff.distributed import runtime; import jax; {code}"
    done = subprocess.run([sys.executable, "-c", text], env=environment | variables, cwd=ROOT,
                          capture_output=True, text=True, check=True)  # fmt: skip
    return done.stdout.split()


SHOW = "print(len(jax.devices('cpu')), jax.config.jax_compilation_cache_dir)"


def test_the_default_is_one_cpu_device_and_a_cache(tmp_path):
    found = fresh(f"runtime.start(); {SHOW}", HOME=str(tmp_path))
    assert found == ["1", str(tmp_path / ".cache" / "jaxdiff")]


def test_the_number_of_cpu_devices_is_configurable(tmp_path):
    assert fresh(f"runtime.start(4); {SHOW}", HOME=str(tmp_path))[0] == "4"


def test_environment_variables_take_precedence(tmp_path):
    variables = {"JAX_NUM_CPU_DEVICES": "3", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "mine")}
    assert fresh(f"runtime.start(5); {SHOW}", **variables) == ["3", str(tmp_path / "mine")]


def test_the_convolution_flag_is_set_only_for_versions_that_have_it(monkeypatch):
    for flags, version, expected in (
        ("", "0.10.2", "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"),
        ("--a=1", "0.10.2", "--a=1 --xla_cpu_experimental_ynn_fusion_type=-individual_convolution"),
        ("--xla_cpu_experimental_ynn_fusion_type=", "0.10.2", "--xla_cpu_experimental_ynn_fusion_type="),
        ("--a=1", "0.11.0", "--a=1"),
    ):
        monkeypatch.setenv("XLA_FLAGS", flags)
        monkeypatch.setattr("jaxlib.__version__", version)
        runtime.start(compile_cache="")
        assert os.environ["XLA_FLAGS"] == expected


TWO = """
import numpy
from jaxdiff.distributed import runtime
runtime.start(2)
runtime.start()
import jax
from jaxdiff.distributed.mesh import MeshShape, global_batch
batch = global_batch(numpy.arange(4) + 4 * jax.process_index(), MeshShape().make())
total = int(jax.jit(lambda x: (x * x).sum())(batch))
print(f"\\n{jax.process_count()} {len(jax.devices())} {total}")
"""


def test_two_processes_find_each_other_and_share_a_batch():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen([sys.executable, "-c", TWO], env=environment | {"JAX_PROCESS_ID": str(index)},
                         cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for index in range(2)
    ]  # fmt: skip
    last = [process.communicate(timeout=60)[0].splitlines()[-1] for process in processes]
    assert [line.split() for line in last] == [["2", "4", str(sum(i * i for i in range(8)))]] * 2


def test_incomplete_variables_of_a_distributed_run_are_an_error(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1234")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES"):
        runtime.start(compile_cache="")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "2")
    with pytest.raises(UserError, match="JAX_PROCESS_ID=2"):
        runtime.start(compile_cache="")


FAULTS = """
import resource
import jax.numpy as jnp
x = jnp.ones(2**23)  # 32 MB
def count(calls):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(calls):
        jax.block_until_ready(x + 1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
count(30)
print(count(10) // 10)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="mallopt is of the GNU C library")
def test_memory_of_a_program_is_used_again():
    """A result of 32 MB costs 8,192 page faults of 4 kB where the memory of the one before has been returned."""
    assert int(fresh(f"runtime.start(compile_cache=''){FAULTS}")[0]) < 1000
