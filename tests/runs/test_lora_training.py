"""LoRA of a run: it starts from the run's model, trains and stores factors only, continues, and is sampled."""

import jax
import numpy as np
import pytest

from jaxdiff import convert
from jaxdiff.config import build, spec
from jaxdiff.data.arrays import Arrays
from jaxdiff.distributed import runtime
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.generation.lora import with_lora
from jaxdiff.models.lora import Lora
from jaxdiff.runs import lora_export
from jaxdiff.runs.restore import restore_params
from jaxdiff.runs.weights import RunWeights, load
from jaxdiff.runs.workdir import read_config
from jaxdiff.tasks.pretrained import LORA
from jaxdiff.train import train
from jaxdiff.training.optimizer import Constant
from jaxdiff.trees import paths
from tests.runs.digits import IMAGES, LABELS, config, sample
from tests.selection import some

pytestmark = pytest.mark.slow

OTHERS = Arrays(image=255 - IMAGES, label=LABELS)


def adapted(base, steps, **options):
    """The same experiment, of which nothing but factors is trained."""
    found = config(steps, ("optimizer.learning_rate", "0.01"))
    modules = {name: spec(RunWeights, workdir=str(base), module=name) for name in ("network", "conditioner")}
    found.task.pretrained = modules
    found.optimizer.schedule = spec(Constant)
    found.task.lora = spec(Lora, **{"rank": 2, "targets": ("network/*",), **options})
    return found


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "lora"
    return folder, train(adapted(base[0], 4), str(folder), source=OTHERS)


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    """JAX runs already, so commands can be called in this process."""
    monkeypatch.setattr(runtime, "start", lambda: None)


def test_without_change_it_is_the_run_that_it_adapts(base, tuned):
    generator = base[1]
    stored = read_config(str(tuned[0]))
    stored.task.lora.scale = 0.0
    experiment = build(stored)
    params = restore_params(experiment, str(tuned[0]), generator.mesh)
    frozen = load(experiment.task.frozen, generator.mesh)
    for path, array in paths(experiment.task.full_params(params, frozen)).items():
        np.testing.assert_array_equal(array, paths(generator.params)[path])
    assert np.any(sample(tuned[1]) != sample(generator))


def test_nothing_but_factors_is_trained_averaged_and_stored(base, tuned):
    folder, generator = tuned
    experiment = build(read_config(str(folder)))
    params = restore_params(experiment, str(folder), generator.mesh)
    assert set(params) == {LORA}
    names = {path.rpartition("/")[2] for path in paths(params)}
    assert names == {"down", "up"}
    sizes = [sum(array.size for array in jax.tree.leaves(tree)) for tree in (params, base[1].params)]
    assert sizes[0] < sizes[1]
    assert any(np.any(array != 0) for path, array in paths(params).items() if path.endswith("up"))
    before, after = paths(base[1].params), paths(generator.params)
    for path, array in before.items():
        changed = path.startswith("network/") and path.endswith("kernel")
        assert np.any(after[path] != array) == changed, path


def test_it_continues_exactly(base, tuned, tmp_path):
    whole = tuned[1]
    for steps in (2, 4):
        train(adapted(base[0], steps), str(tmp_path / "run"), source=OTHERS)
    again = Generator.load(str(tmp_path / "run"))
    np.testing.assert_array_equal(sample(again), sample(whole))
    loaded = Generator.load(str(tuned[0]))
    np.testing.assert_array_equal(sample(loaded), sample(whole))


def test_kernels_that_are_trained_themselves_have_no_factors(base, tmp_path):
    wrong = adapted(base[0], 2)
    wrong.task.pretrained = {"conditioner": wrong.task.pretrained["conditioner"]}
    with pytest.raises(UserError, match=r"lora.targets='network/.*: expected kernels of pretrained modules"):
        train(wrong, str(tmp_path / "a"), source=OTHERS)
    wrong = adapted(base[0], 2, targets=("networks/*",))
    with pytest.raises(UserError, match="targets='networks/\\*': expected a pattern that names a kernel"):
        train(wrong, str(tmp_path / "b"), source=OTHERS)


@pytest.mark.parametrize("layout", some(["diffusers", "kohya"], ["diffusers"]))
def test_a_file_of_the_lora_merged_into_the_base_is_the_trained_model(base, tuned, tmp_path, layout):
    file = tmp_path / "lora.safetensors"
    convert.main(["--workdir", str(tuned[0]), "--to", str(file), "--only-lora", layout])
    merged = with_lora(base[1], [(str(file), 1.0)])
    for path, array in paths(tuned[1].params).items():
        np.testing.assert_allclose(paths(merged.params)[path], array, rtol=1e-5, atol=1e-6)
    still = with_lora(base[1], [(str(file), 0.0)])
    jax.tree.map(np.testing.assert_array_equal, still.params, base[1].params)


def test_a_run_without_a_lora_has_no_file_of_it(base, tmp_path):
    with pytest.raises(UserError, match="expected a run that trains a LoRA"):
        convert.main(
            ["--workdir", str(base[0]), "--to", str(tmp_path / "x.safetensors"), "--only-lora", "kohya"]
        )
    with pytest.raises(UserError, match=r"expected a file of safetensors"):
        convert.main(["--workdir", str(base[0]), "--to", str(tmp_path / "x"), "--only-lora", "kohya"])
    assert not list(tmp_path.iterdir())


def test_a_file_never_leaves_out_factors_without_a_name(tuned, monkeypatch):
    named = lora_export.own_networks

    def without_the_network(*arguments):
        found = named(*arguments)
        return {
            name: (tensors, [entry for entry in entries if not entry.path.startswith("network/")])
            for name, (tensors, entries) in found.items()
        }

    monkeypatch.setattr(lora_export, "own_networks", without_the_network)
    with pytest.raises(
        UserError, match=r"targets='network/.*: expected kernels of the network or of the text"
    ):
        lora_export.adapters_of_run(str(tuned[0]))
