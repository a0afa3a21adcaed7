"""The codec of a task encodes the images of its conditions: in training, in held-out losses, and in a whole run."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from jaxdiff.codecs.latent import Latent
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.latent import LatentImage, MaskedImage
from jaxdiff.cost.estimate import estimate
from jaxdiff.data.arrays import Arrays
from jaxdiff.data.images import to_float
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.denoiser import Denoiser
from jaxdiff.experiment import Experiment
from jaxdiff.generation.generator import Generator
from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.process.prediction import Data
from jaxdiff.process.time_sampling import Uniform
from jaxdiff.runs.weights import FileWeights
from jaxdiff.sampling.grids.continuous import Uniform as UniformGrid
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.train import train
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW
from jaxdiff.training.step import Context
from tests.generation.latent_models import CODEC, MASK, NETWORK, PHOTOS, NoNoise, Shown, frozen, latents_of

CONDITIONS = {"edit": LatentImage(null="none", drop_rate=0.0), "source": MaskedImage()}
HOLES = np.concatenate([PHOTOS, np.where(MASK, 0, 255)[None, ..., None].repeat(2, 0)], -1).astype(np.uint8)
BATCH = {"image": PHOTOS[::-1], "edit": PHOTOS, "source": HOLES}


def a_task(network, names=("edit", "source"), **options):
    conditioner = Conditioner(NoNoise(), {name: CONDITIONS[name] for name in names})
    denoiser = Denoiser(network, conditioner, RectifiedFlow(), Data())
    return DenoisingTask(denoiser, Uniform(), (8, 12, 3), **{"codec": CODEC} | options)


def on_device(batch):
    return {name: jnp.asarray(values) for name, values in batch.items()}


@pytest.mark.slow
def test_fields_of_training_are_encoded_with_the_codec():
    task, context = a_task(Shown()), Context(jnp.int32(0), {}, frozen(), ())
    task.check({name: values[0] for name, values in BATCH.items()}, None)
    found = jax.jit(task.draw)(on_device(BATCH), context, jax.random.key(0))["fields"]
    np.testing.assert_allclose(found["edit"], latents_of(to_float(PHOTOS)), atol=1e-5)
    np.testing.assert_array_equal(found["source"][..., 0], np.stack([MASK[::2, ::2]] * 2))
    grey = np.where(MASK[..., None], 0.0, to_float(PHOTOS))
    np.testing.assert_allclose(found["source"][..., 1:], 0.3 * latents_of(grey), atol=1e-5)
    shapes = jax.tree.map(jnp.shape, task.denoiser.conditioner.example(2, task.data_shape))
    assert jax.tree.map(jnp.shape, found) == shapes


def test_the_held_out_loss_of_a_perfect_model_is_zero():
    """It shows the latents of the images to edit, which here are the data."""
    task = a_task(Shown(factor=0.3), ("edit",))
    loss = jax.jit(task.evaluation_loss)
    t, key, fields = jnp.array([0.3, 0.8]), jax.random.key(0), {"edit": jnp.asarray(PHOTOS)}
    found = loss({}, frozen(), jnp.asarray(PHOTOS), fields, t, key)
    np.testing.assert_allclose(found, 0, atol=1e-9)
    assert loss({}, frozen(), jnp.asarray(PHOTOS[::-1]), fields, t, key).min() > 1e-3


class Mix(nn.Module):
    """A 1 x 1 convolution of everything that it is shown."""

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        return nn.Dense(x.shape[-1], name="mix")(jnp.concatenate([x, embeddings.spatial], axis=-1))


@pytest.mark.slow
def test_a_run_is_trained_planned_loaded_and_sampled(tmp_path):
    file = tmp_path / "autoencoder.safetensors"
    save_file(flatten_dict(jax.tree.map(np.asarray, frozen()["autoencoder"]), sep="/"), file)
    task = a_task(Mix(), codec=Latent(NETWORK, FileWeights(str(file)), scaling_factor=0.3))
    arrays = {name: np.tile(values, (4, 1, 1, 1)) for name, values in BATCH.items()}
    experiment = Experiment(
        task=task, optimizer=AdamW(0.01), ema=Ema(0.5), data=Pipeline(Arrays(**arrays)),
        sampling=Recipe(Ddim(), UniformGrid(), ClassifierFree(), 2),
        steps=1, batch_size=8, checkpoint_every=1, sample_every=0,
    )  # fmt: skip
    assert estimate(experiment)["parameters"] == (4 + 4 + 5) * 4 + 4
    train(experiment, str(tmp_path / "run"))
    generator = Generator.load(str(tmp_path / "run"), packages=("tests",))
    assert generator.params["network"]["mix"]["kernel"].shape == (4 + 4 + 5, 4)
    samples = generator(edit=PHOTOS, known=PHOTOS, mask=MASK)
    np.testing.assert_array_equal(samples[:, ~MASK], PHOTOS[:, ~MASK])
    assert np.mean(samples[:, MASK] != PHOTOS[:, MASK]) > 0.9
