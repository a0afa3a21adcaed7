"""Masked loss: the weighted mean of squared errors, without any gradient from the masked pixels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError
from jaxdiff.models.uncertainty import Uncertainty
from jaxdiff.process import weighting
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.prediction import Noise
from jaxdiff.process.schedule import Cosine
from jaxdiff.process.time_sampling import UniformSteps
from jaxdiff.tasks.augmentation import GeometricAugmentation
from jaxdiff.tasks.bounds import Vlb
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.tasks.distances import PseudoHuber
from jaxdiff.tasks.masking import LossMask
from jaxdiff.tasks.objectives import UncertaintyWeighted, WeightedError
from jaxdiff.training.step import Context
from tests.tasks import models

SHAPE = (4, 4, 2)
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.standard_normal((3, *SHAPE)))
MASKS = jnp.asarray(RNG.integers(0, 2, (3, 4, 4, 1), np.uint8) * 255)
BATCH = {"image": IMAGES, "mask": MASKS}
OBJECTIVES = [
    WeightedError(),
    WeightedError(weighting.MinSnr()),
    WeightedError(weighting.Edm(), PseudoHuber()),
]


class Outputs(nn.Module):
    """The output of each example as a parameter."""

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        return self.param("output", nn.initializers.zeros, (3, *SHAPE))[: len(x)]


def task(mask, objective=OBJECTIVES[0], **options):
    """A task whose output is a parameter: the gradient in it is that of each pixel's prediction."""
    denoiser = Denoiser(Outputs(), Conditioner(models.Label()), VariancePreserving(Cosine()), Noise())
    return DenoisingTask(denoiser, UniformSteps(5), SHAPE, objective, mask=mask, **options)


def of_outputs(mask, objective=OBJECTIVES[0], batch=BATCH):
    """The losses, and their gradient in each value of the output."""
    one = task(mask, objective)
    params = nn.meta.unbox(one.init(jax.random.key(0)))
    examples = one.draw(batch, Context(), jax.random.key(1))

    def losses(params):
        found = one.loss(params, Context(), examples, jax.random.key(2), True)[0]
        return jnp.sum(found), found

    (_, found), grads = jax.jit(jax.value_and_grad(losses, has_aux=True))(params)
    return np.asarray(found), np.asarray(grads["network"]["output"])


@pytest.mark.spread(2)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_masked_pixels_have_no_gradient_at_all(objective):
    _, gradient = of_outputs(LossMask(), objective)
    counted = np.broadcast_to(MASKS > 0, gradient.shape)
    assert np.all(gradient[~counted] == 0)
    assert np.all(gradient[counted] != 0)


def test_the_loss_is_the_mean_over_the_pixels_that_count():
    """Gradients of a mean of squares are 2 error / n: those of the same pixels without a mask, times 16 / n."""
    _, whole = of_outputs(None)
    _, plain = of_outputs(LossMask(normalized=False))
    _, mean = of_outputs(LossMask())
    counted = np.broadcast_to(MASKS > 0, whole.shape)
    np.testing.assert_allclose(plain, np.where(counted, whole, 0), rtol=1e-6)
    share = np.mean(MASKS > 0, axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(mean, plain / share, rtol=1e-6)


@pytest.mark.parametrize("level", [255, 128])
def test_an_even_mask_changes_nothing(level):
    even = {**BATCH, "mask": jnp.full_like(MASKS, level)}
    for found, expected in zip(of_outputs(LossMask(), batch=even), of_outputs(None), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_pixels_outside_may_count_a_little():
    _, whole = of_outputs(None)
    _, found = of_outputs(LossMask(outside=0.25, normalized=False))
    np.testing.assert_allclose(found, np.where(MASKS > 0, 1, 0.25) * whole, rtol=1e-6)


@pytest.mark.spread(3)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("normalized", [True, False])
def test_an_example_without_any_pixel_contributes_zero(objective, normalized):
    empty = {**BATCH, "mask": MASKS.at[1].set(0)}
    losses, gradient = of_outputs(LossMask(normalized=normalized), objective, empty)
    assert losses[1] == 0
    assert np.all(gradient[1] == 0)
    assert np.all(losses[[0, 2]] > 0)
    assert np.all(np.isfinite(gradient))


def test_a_diffused_pixel_has_the_mean_of_the_masks_that_it_covers():
    masks = jnp.asarray(RNG.integers(0, 256, (2, 8, 12, 1), np.uint8))
    found = LossMask(normalized=False).weights({"mask": masks}, (4, 3, 5))
    means = [[[masks[n, 2 * i : 2 * i + 2, 4 * j : 4 * j + 4].mean() for j in range(3)] for i in range(4)]
             for n in range(2)]  # fmt: skip
    np.testing.assert_allclose(found[..., 0], np.array(means) / 255, rtol=1e-6)


def test_what_cannot_be_masked_is_refused():
    plain = task(None)
    uncertain = dataclasses.replace(plain, denoiser=plain.denoiser.clone(uncertainty=Uncertainty(4)))
    for objective in (Vlb(), UncertaintyWeighted()):
        with pytest.raises(UserError, match="expected the objective WeightedError"):
            dataclasses.replace(uncertain, objective=objective, mask=LossMask())
    with pytest.raises(UserError, match="expected no augmentation in the task"):
        task(LossMask(), augmentation=GeometricAugmentation())
    with pytest.raises(UserError, match="expected a field of the examples, got image"):
        task(LossMask()).check({"image": np.zeros(SHAPE, np.uint8)}, None)
    small = {"image": np.zeros((4, 4, 3), np.uint8), "mask": np.zeros((4, 2, 1), np.uint8)}
    with pytest.raises(UserError, match=r"config.data.mask=.*expected bytes \[4, 4, 1\]"):
        LossMask().check_example(small, (4, 4, 3))


def test_weights_of_examples_multiply_their_losses():
    weights = jnp.asarray([1.0, 0.0, 0.5])
    losses, gradient = of_outputs(None, batch={**BATCH, "loss_weight": weights})
    plain, whole = of_outputs(None)
    np.testing.assert_allclose(losses, weights * plain, rtol=1e-6)
    np.testing.assert_allclose(gradient, weights[:, None, None, None] * whole, rtol=1e-6)
