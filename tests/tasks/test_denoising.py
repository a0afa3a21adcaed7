"""The task: what it draws for whom, and what it tells the law of times."""

import jax
import jax.numpy as jnp
import models
import numpy as np
from flax import linen as nn

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.denoiser import Denoiser
from jaxdiff.distributed import partitioning
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.process import prediction, weighting
from jaxdiff.process.gaussian import RectifiedFlow, VariancePreserving
from jaxdiff.process.schedule import Cosine
from jaxdiff.process.time_sampling import History, Importance, UniformSteps
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.tasks.objectives import WeightedError
from jaxdiff.training.step import Task

VP = VariancePreserving(Cosine(-6.0, 6.0))


def test_denoising_is_a_task():
    assert isinstance(models.affine_task(VP, WeightedError()), Task)


def test_noise_differs_per_sample_step_and_shard(float32):
    """And is the same on one device and on eight."""
    task = models.affine_task(VP, WeightedError())
    mesh = MeshShape().make(jax.devices())
    images = {"image": jnp.zeros((16, 1, 1, 1))}
    shared = jax.device_put(images, partitioning.batch_sharding(mesh))
    draw = jax.jit(lambda batch, step: task.draw(batch, (), jax.random.fold_in(jax.random.key(0), step)))
    spread = jax.jit(
        lambda batch, step: task.draw(batch, (), jax.random.fold_in(jax.random.key(0), step)),
        out_shardings=partitioning.batch_sharding(mesh),
    )
    steps = [draw(images, step) for step in range(3)]
    for name in ("noise", "u"):
        values = np.concatenate([np.ravel(examples[name]) for examples in steps])
        assert len(set(values)) == 48
        shards = spread(shared, 1)[name].addressable_shards
        assert len(shards) == 8
        np.testing.assert_array_equal(np.concatenate([s.data for s in shards]), steps[1][name])


def test_law_of_times_is_told_the_losses_before_they_are_weighted():
    law = Importance(UniformSteps(5), bins=5, history=2)
    task = models.affine_task(VP, WeightedError(weighting.Snr()), times=law)
    plain = models.affine_task(VP, WeightedError(weighting.Snr()))
    memory = History(jnp.asarray([[8.0, 8], [4, 4], [2, 2], [1, 1], [1, 1]]), jnp.full(5, 2, jnp.int32))
    examples = jax.jit(task.draw)({"image": jnp.ones((400, 1, 1, 1))}, memory, jax.random.key(0))
    p = law.probabilities(memory)
    bins = np.floor(np.asarray(examples["u"]) * 5).astype(int)
    np.testing.assert_allclose(np.bincount(bins) / 400, p, atol=1 / 400)
    params = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0)))
    losses, _ = models.losses_of(task, params, examples)
    bare, _ = models.losses_of(plain, params, {**examples, "importance": jnp.ones(400)})
    np.testing.assert_allclose(losses, bare / (5 * p[bins]), rtol=1e-12)
    after = jax.jit(task.remember)(memory, examples, losses)
    for b in range(5):
        np.testing.assert_allclose(
            np.sort(after.losses[b]), np.sort(np.asarray(bare)[bins == b][-2:]), rtol=1e-12
        )
    np.testing.assert_array_equal(after.counts, 2 + np.bincount(bins))
    np.testing.assert_array_equal(task.memory().counts, 0)


def test_error_at_chosen_times_is_that_of_the_image():
    """For nothing preconditioned as EDM's, which is the best denoiser of N(0, sigma_data^2)."""
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
        np.testing.assert_allclose(jax.jit(task.error_at)({}, images, {}, t, key), expected, rtol=1e-6)
