"""Half precision: frozen networks that cost half the memory, and runs whose parameters are stored in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdiff.config import build, spec
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.models.lora import Lora
from jaxdiff.runs.restore import restore_params
from jaxdiff.runs.start import prepare
from jaxdiff.runs.weights import FileWeights, RunWeights, load
from jaxdiff.runs.workdir import read_config
from jaxdiff.train import train
from jaxdiff.training.adafactor import Adafactor
from jaxdiff.training.ema import NoEma
from jaxdiff.training.state import init_params
from jaxdiff.training.transfer import InitFrom
from jaxdiff.trees import paths
from tests.runs.digits import SOURCE, config
from tests.training.toy import mesh

AT_ONCE = ("optimizer.schedule.warmup_steps", "0")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Initial parameters in a file, its kernels and tables in float16."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    arrays = paths(jax.device_get(init_params(build(config(1, AT_ONCE)).task, 0)))
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    halves = {name: array.astype(np.float16) if array.ndim > 1 else array for name, array in arrays.items()}
    save_file({name.replace("/", "."): array for name, array in halves.items()}, path)
    return path


def lora_on(file, dtype, steps=2):
    found = config(steps, AT_ONCE)
    modules = ("network", "conditioner")
    found.task.pretrained = {
        name: spec(FileWeights, path=str(file), module=name, dtype=dtype) for name in modules
    }
    found.task.lora = spec(Lora, rank=2)
    return found


@pytest.mark.slow
def test_only_kernels_and_tables_are_held_in_half_precision(file):
    weights = {dtype: FileWeights(str(file), dtype=dtype) for dtype in ("float32", "float16", "bfloat16")}
    exact, same, short = (paths(tree) for tree in load(weights, mesh()).values())
    for name, array in exact.items():
        half = array.ndim >= 2
        assert array.dtype == jnp.float32
        assert same[name].dtype == (jnp.float16 if half else jnp.float32)
        assert short[name].dtype == (jnp.bfloat16 if half else jnp.float32)
        np.testing.assert_array_equal(same[name].astype(jnp.float32), array)
    with pytest.raises(UserError, match="dtype='int8': expected one of"):
        FileWeights(str(file), dtype="int8")


@pytest.fixture(scope="module")
def adapted(file, tmp_path_factory):
    """Two runs with LoRA, on the same network in two types."""
    folders = {dtype: str(tmp_path_factory.mktemp("runs") / dtype) for dtype in ("float32", "float16")}
    return {
        folder: train(lora_on(file, dtype), folder, source=SOURCE).params for dtype, folder in folders.items()
    }


@pytest.mark.slow
def test_lora_of_a_network_in_its_files_precision_is_that_of_float32_bit_by_bit(adapted):
    factors = [restore_params(build(read_config(folder)), folder, mesh()) for folder in adapted]
    for a, b in zip(*map(jax.tree.leaves, factors), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(array != 0) for name, array in paths(factors[1]).items() if name.endswith("up"))


@pytest.mark.slow
def test_a_run_in_bfloat16_begins_as_another_run_whose_files_are_held_in_float16(adapted, tmp_path):
    start, params = next(iter(adapted.items()))
    begun = config(2, AT_ONCE)
    begun.task.param_dtype = "bfloat16"
    begun.init_from = spec(InitFrom, workdir=start, dtype="float16")
    experiment = build(begun)
    prepare(experiment, tmp_path, mesh())
    found = paths(restore_params(experiment, str(tmp_path), mesh()))
    for name, array in paths(params).items():
        half = array.ndim >= 2
        np.testing.assert_array_equal(found[name], array.astype(jnp.bfloat16 if half else jnp.float32))


def stored_in_bfloat16(steps):
    found = config(steps, AT_ONCE)
    found.task.param_dtype = "bfloat16"
    found.optimizer = spec(Adafactor, learning_rate=1e-3)
    found.ema = spec(NoEma)
    return found


def sample(generator):
    return generator(label=[1, 2, 3], seed=0)


@pytest.mark.slow
def test_a_run_in_bfloat16_continues_exactly_and_is_sampled(tmp_path):
    whole = train(stored_in_bfloat16(4), str(tmp_path / "whole"), source=SOURCE)
    for steps in (2, 4):
        train(stored_in_bfloat16(steps), str(tmp_path / "parts"), source=SOURCE)
    again = Generator.load(str(tmp_path / "parts"))
    for name, array in paths(again.params).items():
        assert array.dtype == (jnp.bfloat16 if array.ndim >= 2 else jnp.float32), name
        np.testing.assert_array_equal(array, paths(whole.params)[name])
    np.testing.assert_array_equal(sample(again), sample(whole))
    other = load({"network": RunWeights(str(tmp_path / "whole"), module="network")}, mesh())
    assert {array.dtype for array in jax.tree.leaves(other)} == {jnp.dtype("float32")}
