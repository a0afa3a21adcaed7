"""Frozen networks: read once, recorded, passed to the step as arguments, and in no checkpoint."""

import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from safetensors.numpy import save_file

from jaxdiff.codecs.identity import Identity
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.data.arrays import Arrays
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.denoiser import Denoiser
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.errors import UserError
from jaxdiff.experiment import Experiment
from jaxdiff.generation.generator import Generator
from jaxdiff.process.gaussian import VarianceExploding
from jaxdiff.process.prediction import Edm
from jaxdiff.process.time_sampling import LogNormalSigma
from jaxdiff.runs.start import prepare
from jaxdiff.runs.weights import FileWeights, RunWeights, fingerprint, load
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.train import train
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW
from jaxdiff.trees import paths
from jaxdiff.typing import Weights
from tests.tasks.models import Label

SIZE, DATA = 6, 3
VECTORS = np.random.default_rng(0).standard_normal((64, SIZE)).astype(np.float32)
BASIS = np.linalg.qr(np.random.default_rng(1).standard_normal((SIZE, DATA)))[0].astype(np.float32)


class Mlp(nn.Module):
    """Two dense layers over vectors."""

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        h = nn.Dense(8, name="inner")(jnp.concatenate([x, embeddings.vector], axis=-1))
        return nn.Dense(x.shape[-1], name="outer")(jax.nn.silu(h))


@dataclasses.dataclass(frozen=True)
class Projection(Identity):
    """A codec with a network: vectors in a basis of fewer dimensions."""

    weights: Weights | None = None

    @property
    def frozen(self):
        return FrozenDict({"basis": self.weights})

    def data_shape(self, stored_shape):
        return (DATA,)

    def encode(self, frozen, stored, keys):
        return stored if stored.shape[-1] == DATA else stored @ frozen["basis"]["matrix"]

    def decode(self, frozen, x_0):
        return x_0 @ frozen["basis"]["matrix"].T


def experiment(codec=None, frozen=(), pretrained=None, steps=4):
    """Vectors [n, 6] diffused as they are, or through a codec: rank 2 from the data to the samples."""
    denoiser = Denoiser(Mlp(), Conditioner(Label()), VarianceExploding(0.01, 5.0), Edm())
    task = DenoisingTask(
        denoiser, LogNormalSigma(), (SIZE,), codec=codec or Identity(), data_field="vector",
        pretrained=FrozenDict(pretrained or {}),
    )  # fmt: skip
    return Experiment(
        task=task,
        optimizer=AdamW(0.01, frozen=frozen),
        ema=Ema(0.5),
        data=Pipeline(Arrays(vector=VECTORS)),
        sampling=Recipe(Ddim(), Karras(0.02, 5.0), ClassifierFree(), 4),
        steps=steps,
        batch_size=16,
        checkpoint_every=2,
        sample_every=0,
    )


@pytest.fixture(scope="module")
def basis(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "basis.safetensors"
    save_file({"encoder.matrix": BASIS}, path)
    return FileWeights(str(path), module="encoder")


@pytest.fixture(scope="module")
def run(tmp_path_factory, basis):
    folder = tmp_path_factory.mktemp("run")
    return folder, train(experiment(Projection(weights=basis)), str(folder))


def saved(folder, step):
    """The paths of all arrays of a checkpoint."""
    (metadata,) = (folder / "checkpoints" / str(step)).rglob("_METADATA")
    return list(json.loads(metadata.read_text())["tree_metadata"])


def test_origins_are_weights(basis):
    assert isinstance(basis, Weights)
    assert isinstance(RunWeights("runs/a"), Weights)
    np.testing.assert_array_equal(basis.read()["matrix"], BASIS)
    with pytest.raises(UserError, match="module='decoder': expected the path of a module, got no 'decoder'"):
        dataclasses.replace(basis, module="decoder").read()


@pytest.mark.slow
def test_vectors_are_trained_and_sampled_through_a_frozen_codec(run, basis):
    folder, generator = run
    samples = generator(5)
    assert samples.shape == (5, SIZE)
    inside = samples @ BASIS @ BASIS.T  # the decoder can give nothing else
    np.testing.assert_allclose(samples, inside, atol=1e-5)
    np.testing.assert_array_equal(Generator.load(str(folder), packages=("tests",))(5), samples)
    record = json.loads((folder / "frozen.json").read_text())
    assert record == {"basis": {"from": f"{basis.path} encoder", "sha256": fingerprint({"matrix": BASIS})}}
    assert not any("matrix" in path for path in saved(folder, 4))


def test_the_loss_matches_vectors_encoded_beforehand(tmp_path, run):
    """The codec acts once, in the draw: training on VECTORS through it is training on VECTORS @ BASIS."""
    beforehand = dataclasses.replace(experiment().task, image_shape=(DATA,))
    plain = dataclasses.replace(experiment(), task=beforehand)
    alone = train(plain, str(tmp_path), source=Arrays(vector=VECTORS @ BASIS))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), alone.params, run[1].params)


def test_other_weights_are_refused_when_a_run_continues(tmp_path):
    path = tmp_path / "basis.safetensors"
    save_file({"matrix": BASIS}, path)
    codec = Projection(weights=FileWeights(str(path)))
    train(experiment(codec, steps=2), str(tmp_path / "run"))
    save_file({"matrix": BASIS[:, ::-1].copy()}, path)
    for call in (
        lambda: train(experiment(codec, steps=4), str(tmp_path / "run")),
        lambda: Generator.load(str(tmp_path / "run"), packages=("tests",)),
    ):
        with pytest.raises(
            UserError, match=r"task.frozen.basis=.*expected the weights that the run started with"
        ):
            call()


@pytest.mark.parametrize("text", ["[1]", "{", '{"basis": 1}', '{"basis": {"sha256": 1}}', "[" * 100_000])
def test_a_record_of_other_json_is_one_line(tmp_path, run, text):
    copy = tmp_path / "run"
    shutil.copytree(run[0], copy)
    (copy / "frozen.json").write_text(text)
    with pytest.raises(UserError, match=r"--workdir=.*frozen\.json.*got .* Fix: restore the file"):
        Generator.load(str(copy), packages=("tests",))


@pytest.mark.parametrize("batch_size", [12, 4])
def test_a_batch_that_the_devices_cannot_share_leaves_no_folder(tmp_path, batch_size):
    wrong = dataclasses.replace(experiment(), batch_size=batch_size)
    with pytest.raises(
        UserError, match=rf"config\.batch_size={batch_size}: expected a multiple of 8 devices"
    ):
        train(wrong, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_module_of_the_denoiser_may_come_from_another_run(tmp_path, run, basis):
    folder, other = run
    origin = RunWeights(str(folder), module="network/inner", packages=("tests",))
    made = experiment(Projection(weights=basis), pretrained={"network/inner": origin})
    trained = train(made, str(tmp_path / "run"))
    jax.tree.map(
        np.testing.assert_array_equal, trained.params["network"]["inner"], other.params["network"]["inner"]
    )
    assert np.any(
        np.asarray(trained.params["network"]["outer"]["kernel"]) != other.params["network"]["outer"]["kernel"]
    )
    assert not any("'network', 'inner'" in path for path in saved(tmp_path / "run", 4))
    np.testing.assert_array_equal(Generator.load(str(tmp_path / "run"), packages=("tests",))(3), trained(3))


def test_untrained_parameters_are_stored_once_and_come_back(tmp_path, basis):
    made = experiment(Projection(weights=basis), frozen=("network/inner",))
    trained = train(made, str(tmp_path / "run"))
    assert sorted(path.name for path in (tmp_path / "run" / "untrained").iterdir()) == ["0"]
    assert not any("'network', 'inner'" in path for path in saved(tmp_path / "run", 4))
    again = Generator.load(str(tmp_path / "run"), packages=("tests",))
    assert set(paths(again.params)) == set(paths(trained.params))
    jax.tree.map(np.testing.assert_array_equal, again.params, trained.params)
    longer = train(dataclasses.replace(made, steps=6), str(tmp_path / "run"))
    jax.tree.map(
        np.testing.assert_array_equal, longer.params["network"]["inner"], trained.params["network"]["inner"]
    )


def test_weights_that_do_not_fit_are_refused_before_anything_is_compiled(tmp_path, run, basis):
    wide = tmp_path / "wide.safetensors"
    save_file({"matrix": np.zeros((SIZE + 1, DATA), np.float32)}, wide)
    with pytest.raises(UserError, match=r"config.task.codec=Projection: expected weights that fit the codec"):
        train(experiment(Projection(weights=FileWeights(str(wide)))), str(tmp_path / "a"))
    outer = RunWeights(str(run[0]), module="network/outer", packages=("tests",))
    with pytest.raises(
        UserError, match=r"config.task.pretrained=network/inner/bias: expected float32\[8\], got"
    ):
        train(experiment(Projection(weights=basis), pretrained={"network/inner": outer}), str(tmp_path / "b"))


@pytest.mark.slow
def test_until_the_first_checkpoint_nothing_binds_a_folder(tmp_path, basis):
    """A start that is killed leaves records; the next start of another run replaces them."""
    first = dataclasses.replace(experiment(Projection(weights=basis), frozen=("network/inner",)), seed=1)
    second = dataclasses.replace(first, seed=2)
    folder = tmp_path / "run"
    folder.mkdir()
    prepare(first, folder, MeshShape().make(jax.devices()[:1]))
    (folder / "untrained" / "half").mkdir()
    trained = train(second, str(folder))
    alone = train(second, str(tmp_path / "alone"))
    jax.tree.map(np.testing.assert_array_equal, trained.params, alone.params)


def test_large_weights_are_split_over_the_mesh():
    class Large:
        def read(self):
            return {
                "kernel": nn.LogicallyPartitioned(
                    np.zeros((256, 512), np.float32), ("channels_in", "channels_out")
                )
            }

        def describe(self):
            return "zeros"

    mesh = MeshShape(data=2, fsdp=2, tensor=2).make(jax.devices())
    kernel = load({"net": Large()}, mesh)["net"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (128, 256)
