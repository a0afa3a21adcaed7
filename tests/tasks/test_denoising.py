"""The denoising task: its random draws per example, and the losses that its time sampler receives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.noisy import NoiseAugmented
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.denoiser import Denoiser
from jaxdiff.distributed import partitioning
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.errors import UserError
from jaxdiff.process import prediction, weighting
from jaxdiff.process.gaussian import RectifiedFlow, VariancePreserving
from jaxdiff.process.schedule import Cosine
from jaxdiff.process.time_sampling import History, Importance, UniformSteps
from jaxdiff.tasks.augmentation import GeometricAugmentation
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.tasks.objectives import WeightedError
from jaxdiff.training.step import Context, Task
from tests.tasks import models

VP = VariancePreserving(Cosine(-6.0, 6.0))


def test_denoising_is_a_task():
    assert isinstance(models.affine_task(VP, WeightedError()), Task)


def test_noise_differs_per_sample_step_and_shard(float32):
    """And is the same on one device and on eight."""
    task = models.affine_task(VP, WeightedError())
    mesh = MeshShape().make(jax.devices())
    images = {"image": jnp.zeros((16, 1, 1, 1))}
    shared = jax.device_put(images, partitioning.batch_sharding(mesh))
    draw = jax.jit(
        lambda batch, step: task.draw(batch, Context(), jax.random.fold_in(jax.random.key(0), step))
    )
    spread = jax.jit(
        lambda batch, step: task.draw(batch, Context(), jax.random.fold_in(jax.random.key(0), step)),
        out_shardings=partitioning.batch_sharding(mesh),
    )
    steps = [draw(images, step) for step in range(3)]
    for name in ("noise", "u"):
        values = np.concatenate([np.ravel(examples[name]) for examples in steps])
        assert len(set(values)) == 48
        shards = spread(shared, 1)[name].addressable_shards
        assert len(shards) == 8
        np.testing.assert_array_equal(np.concatenate([s.data for s in shards]), steps[1][name])


def test_time_sampler_receives_the_unweighted_losses():
    time_sampler = Importance(UniformSteps(5), bins=5, history=2)
    task = models.affine_task(VP, WeightedError(weighting.Snr()), time_sampler=time_sampler)
    plain = models.affine_task(VP, WeightedError(weighting.Snr()))
    memory = History(jnp.asarray([[8.0, 8], [4, 4], [2, 2], [1, 1], [1, 1]]), jnp.full(5, 2, jnp.int32))
    examples = jax.jit(task.draw)(
        {"image": jnp.ones((400, 1, 1, 1))}, Context(task_state=memory), jax.random.key(0)
    )
    p = time_sampler.probabilities(memory)
    bins = np.floor(np.asarray(examples["u"]) * 5).astype(int)
    np.testing.assert_allclose(np.bincount(bins) / 400, p, atol=1 / 400)
    params = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0)))
    losses, _ = models.losses_of(task, params, examples)
    bare, _ = models.losses_of(plain, params, {**examples, "importance": jnp.ones(400)})
    np.testing.assert_allclose(losses, bare / (5 * p[bins]), rtol=1e-12)
    after = jax.jit(task.update_task_state)(memory, examples, losses)
    for b in range(5):
        np.testing.assert_allclose(
            np.sort(after.losses[b]), np.sort(np.asarray(bare)[bins == b][-2:]), rtol=1e-12
        )
    np.testing.assert_array_equal(after.counts, 2 + np.bincount(bins))
    np.testing.assert_array_equal(task.init_task_state().counts, 0)


def test_error_at_chosen_times_is_the_images_error():
    """For EDM's preconditioning of zeros, the optimal denoiser of N(0, sigma_data^2)."""
    std = 0.6
    for process in (VP, RectifiedFlow()):
        denoiser = Denoiser(models.Zero(), Conditioner(models.Label()), process, prediction.Edm(std))
        task = DenoisingTask(denoiser, UniformSteps(3), (4, 4, 1), WeightedError(weighting.Sigmoid()))
        images = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 4, 1)))
        key, t = jax.random.key(3), jnp.array([0.1, 0.5, 1.0])
        noise = jax.random.normal(key, images.shape)
        alpha, sigma = (value[:, None, None, None] for value in process.signal(t))
        predicted = alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (alpha * images + sigma * noise)
        expected = np.mean(np.square(predicted - images), axis=(1, 2, 3))
        np.testing.assert_allclose(
            jax.jit(task.evaluation_loss)({}, {}, images, {}, t, key), expected, rtol=1e-6
        )


def conditional(parts, network=None, **options):
    """A task of 4 x 4 images under these conditions."""
    denoiser = Denoiser(network or models.Zero(), Conditioner(models.Label(), parts), VP, prediction.Data())
    return DenoisingTask(denoiser, UniformSteps(3), (4, 4, 1), **options)


@pytest.mark.slow
def test_augmentation_labels_are_a_condition():
    augmentation = GeometricAugmentation(p=0.5)
    task = conditional({"augment": Continuous(9, 1)}, augmentation=augmentation)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((200, 4, 4, 1)))
    examples = jax.jit(task.draw)({"image": images}, Context(), jax.random.key(0))
    labels = examples["fields"]["augment"]
    same = jnp.all(examples["x_0"] == images, axis=(1, 2, 3))
    np.testing.assert_array_equal(same, jnp.all(labels == 0, axis=1))
    assert 0 < same.sum() < 20
    flipped = np.flatnonzero((labels[:, 0] == 1) & jnp.all(labels[:, 1:] == 0, axis=1))
    np.testing.assert_array_equal(examples["x_0"][flipped], images[flipped, :, ::-1])
    other = jax.jit(task.draw)({"image": images}, Context(), jax.random.key(1))
    assert jnp.any(other["fields"]["augment"] != labels)
    plain = conditional({"augment": Continuous(9, 1, default=0.0)})
    drawn = jax.jit(plain.draw)({"image": images}, Context(), jax.random.key(0))
    np.testing.assert_array_equal(drawn["x_0"], images)
    np.testing.assert_array_equal(drawn["fields"]["augment"], jnp.zeros((200, 9)))
    for name in ("noise", "u"):
        np.testing.assert_array_equal(drawn[name], examples[name])


def test_augmentation_is_the_same_on_one_device_and_on_eight(float32):
    task = conditional({"augment": Continuous(9, 1)}, augmentation=GeometricAugmentation(p=0.5))
    sharding = partitioning.batch_sharding(MeshShape().make(jax.devices()))
    images = np.random.default_rng(0).standard_normal((16, 4, 4, 1), np.float32)
    drawn = jax.jit(task.draw)({"image": images}, Context(), jax.random.key(0))
    spread = jax.jit(task.draw, out_shardings=sharding)(
        {"image": jax.device_put(images, sharding)}, Context(), jax.random.key(0)
    )
    np.testing.assert_array_equal(spread["fields"]["augment"], drawn["fields"]["augment"])
    np.testing.assert_allclose(spread["x_0"], drawn["x_0"], atol=1e-5)


@pytest.mark.parametrize("parts", [{}, {"augment": Continuous(8, 1)}, {"augmentation": Continuous(9, 1)}])
def test_augmentation_without_its_condition_is_an_error(parts):
    with pytest.raises(UserError, match=r"augmentation=.*expected a condition 'augment' of 9 numbers"):
        conditional(parts, augmentation=GeometricAugmentation())


def test_held_out_images_may_differ_from_training_in_height_and_width_only():
    """Where an image is the condition: the samples have its size."""
    task = conditional({"low": ImageCondition(1)})

    def check(*shape):
        image = np.zeros(shape, np.uint8)
        task.check_held_out({"image": image, "low": image}, None)

    check(8, 6, 1)
    for shape in ((4, 1, 4), (4, 4, 3), (4, 1)):
        with pytest.raises(UserError, match=r"config.test_data=.*: expected examples of training's shape"):
            check(*shape)


class Shown(nn.Module):
    """Predicts its condition."""

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        return embeddings.spatial


@pytest.mark.slow
def test_conditions_have_random_levels_in_training_only():
    """A model that predicts its condition has the error of the condition's noise: ``level^2`` for clean images of 0."""
    low = NoiseAugmented(ImageCondition(1), NoiseLevel(1, frequencies=2), RectifiedFlow(), level=0.3)
    task = conditional({"low": low}, Shown())
    params = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0)))
    batch = {"image": jnp.zeros((500, 4, 4, 1)), "low": jnp.zeros((500, 4, 4, 1))}
    examples = jax.jit(task.draw)(batch, Context(), jax.random.key(1))
    levels = examples["fields"]["low"]["level"]
    assert len(np.unique(levels)) == 500
    losses, _ = models.losses_of(task, params, examples)
    ratio = losses / levels**2
    assert abs(ratio.mean() - 1) < 4 * np.sqrt(2 / 16 / 500)
    errors = jax.jit(task.evaluation_loss)(
        params, {}, batch["image"], {"low": batch["low"]}, jnp.full(500, 0.5), jax.random.key(2)
    )
    assert abs(errors.mean() - 0.09) < 4 * 0.09 * np.sqrt(2 / 16 / 500)
    fields = {"low": batch["low"], "text": batch["low"]}
    with pytest.raises(UserError, match="conditions='text': expected a condition of the model"):
        task.evaluation_loss(params, {}, batch["image"], fields, jnp.full(500, 0.5), jax.random.key(2))
    with pytest.raises(UserError, match=r"low=: expected a .* for this condition of the model, got none in"):
        task.draw({"image": batch["image"]}, Context(), jax.random.key(0))
