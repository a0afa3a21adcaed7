"""Inpainting: known pixels exactly, unknown ones against the conditional distribution of a correlated Gaussian."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.errors import UserError
from jaxdiff.process import transition
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.grids.continuous import Karras, Uniform
from jaxdiff.sampling.grids.restart import RePaint
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.loop import integrate
from jaxdiff.sampling.modifiers.inpainting import Blending, Replacement
from jaxdiff.sampling.noise import fold_in
from jaxdiff.sampling.protocols import KnownData, stateless
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ancestral import Ancestral
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver2M
from jaxdiff.sampling.samplers.heun import Heun
from tests.oracles import predict_from_data
from tests.sampling.solving import Draws

FLOW, VP = RectifiedFlow(), VariancePreserving(Cosine())
CORRELATION, KNOWN = 0.8, 1.5
KEYS = jax.random.split(jax.random.key(0), 5)


def correlated(process):
    """The exact denoiser of two correlated pixels: images [batch, 1, 2, 1]."""

    def denoise(x, t):
        alpha, sigma = process.signal(t)
        mean = jnp.mean(x, axis=2, keepdims=True)  # it and the deviation from it are independent
        one, other = (alpha * v / (alpha**2 * v + sigma**2) for v in (1 + CORRELATION, 1 - CORRELATION))
        return predict_from_data(process, x, t, one * mean + other * (x - mean))

    return denoise


def first_pixel_known(batch):
    images = jnp.broadcast_to(jnp.asarray([KNOWN, 7.0]).reshape(1, 1, 2, 1), (batch, 1, 2, 1))
    return KnownData(images, jnp.broadcast_to(jnp.asarray([False, True]).reshape(1, 1, 2, 1), images.shape))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def values(sampler, process, base, steps, repeats):
    """Each step of the base is ``x -> a x + b noise + c`` of the two pixels: its values at five points that tell these.

    And the jump to the image from each time, which step each one of the path is, and what happens before it.
    """
    x = jnp.asarray([[0.0, 0], [1, 0], [0, 1], [0, 0], [0, 0]]).reshape(5, 1, 2, 1)
    noise = jnp.asarray([[0.0, 0], [0, 0], [0, 0], [1, 0], [0, 1]]).reshape(5, 1, 2, 1)
    denoise = Replacement()(stateless(correlated(process)), process, first_pixel_known(5))

    def step(t, t_next):
        with Draws([noise]):
            return sampler.step(denoise.call, process, sampler.init(x), t, t_next, KEYS).x.reshape(5, 2)

    times = base(process, steps)
    path = RePaint(base, jump_length=1, repeats=repeats)(process, steps)
    origin = jnp.concatenate([path.start[:1], path.end[:-1]])
    return (
        jax.vmap(step)(times[:-1], times[1:]),
        denoise(x, times[-1]).x_0.reshape(5, 2),
        jnp.searchsorted(-times, -path.start),
        transition.forward(process, origin, path.start),
        process.signal(times[0]),
    )


def split(at):
    """a, b and c."""
    return (at[1:3] - at[0]).T, (at[3:] - at[0]).T, at[0]


def moments(sampler, process, base, steps, repeats):
    """The exact mean and covariance of the two pixels at the end, from those at pure noise."""
    found = jax.tree.map(np.asarray, values(sampler, process, base, steps, repeats))
    each, last, numbers, rises, (alpha, sigma) = found
    mean, covariance = np.array([alpha * KNOWN, 0.0]), sigma**2 * np.eye(2)
    for number, up, fresh in zip(numbers, *rises, strict=True):
        mean, covariance = up * mean, up**2 * covariance + fresh**2 * np.eye(2)
        a, b, c = split(each[number])
        mean, covariance = a @ mean + c, a @ covariance @ a.T + b @ b.T
    a, _, c = split(last)
    return a @ mean + c, a @ covariance @ a.T


def errors(process, repeats, steps):
    """Errors of the unknown pixel's mean and variance; the known pixel is exact."""
    mean, covariance = moments(Ancestral("small"), process, Karras(0.02, 20.0), steps, repeats)
    assert mean[0] == KNOWN
    assert covariance[0, 0] == 0
    return mean[1] - CORRELATION * KNOWN, covariance[1, 1] - (1 - CORRELATION**2)


@pytest.mark.slow
def test_resampling_approaches_the_conditional_distribution():
    """The remaining error of the variance is the sampler's: it halves when the steps double."""
    plain, many = errors(VP, 1, 40), errors(VP, 125, 40)
    few = errors(VarianceExploding(), 5, 40)  # in the coordinates of samplers all processes are one
    assert plain[0] < -0.4  # of a conditional mean of 1.2
    assert plain[1] > 0.1  # of a conditional variance of 0.36
    assert abs(few[0]) < abs(plain[0]) / 3
    assert abs(many[0]) < 0.01
    assert abs(many[1]) == pytest.approx(2 * abs(errors(VP, 125, 80)[1]), rel=0.15)


@pytest.mark.spread(3)
@pytest.mark.parametrize("sampler", [Ddim(), Ddim(1.0), Heun(), DpmSolver2M(), Ancestral("small")], ids=str)
def test_known_pixels_of_noisy_images_are_the_diffused_known_image(sampler):
    """Mean alpha known and standard deviation sigma, at every time and with every sampler."""
    keys, times = jax.random.split(jax.random.key(1), 4000), jnp.asarray([1.0, 0.8, 0.6, 0.3])

    @jax.jit
    def run(x):
        denoise = Replacement()(stateless(correlated(FLOW)), FLOW, first_pixel_known(4000))
        return integrate(sampler, denoise, FLOW, times, x, keys)

    x = run(jax.random.normal(jax.random.key(2), (4000, 1, 2, 1)))[:, 0, 0, 0]
    assert abs(np.mean(x) - 0.7 * KNOWN) < 4 * 0.3 / np.sqrt(4000)
    assert abs(np.std(x) / 0.3 - 1) < 4 / np.sqrt(8000)


def test_the_prediction_is_consistent_with_the_noisy_image():
    x, t = jnp.asarray(np.random.default_rng(0).normal(size=(5, 1, 2, 1))), jnp.asarray(0.6)

    def denoise(x, t):
        return correlated(FLOW)(x, t)._replace(variance_fraction=jnp.full_like(x, 0.7))

    found = Replacement()(stateless(denoise), FLOW, first_pixel_known(5))(x, t)
    np.testing.assert_allclose(0.4 * found.x_0 + 0.6 * found.noise, x, rtol=1e-9)
    np.testing.assert_array_equal(found.x_0[:, 0, 1], denoise(x, t).x_0[:, 0, 1])
    np.testing.assert_array_equal(found.variance_fraction[:, 0, :, 0], [[0.0, 0.7]] * 5)


@pytest.mark.spread(2)
@pytest.mark.parametrize("method", [Replacement(), Blending()], ids=str)
@pytest.mark.parametrize(
    ("grid", "t_end"), [(Uniform(), None), (Uniform(), 1e-3), (RePaint(Uniform(), 1, 3), None)], ids=str
)
def test_known_pixels_are_kept_exactly(grid, t_end, method, float32):
    known = first_pixel_known(5)
    recipe = Recipe(Ddim(1.0), grid, ClassifierFree(), 4, inpainting=method, t_end=t_end)
    made = recipe(conditional(correlated(FLOW)), FLOW, {}, (1, 2, 1), KEYS, known=known)
    np.testing.assert_array_equal(made[:, 0, 0], known.values[:, 0, 0])
    assert np.all(made[:, 0, 1] != known.values[:, 0, 1])


def conditional(denoise):
    return lambda x, t, conditions, drop: denoise(x, t)


def seen(method, known=None):
    """What a model sees in three steps from level 2, where alpha is 1/3; and the times."""
    recipe, images, times = Recipe(Ddim(), Karras(0.1, 2.0), ClassifierFree(), 3, inpainting=method), [], []

    def denoise(x, t):
        images.append(np.asarray(x[:, 0, :, 0]))
        times.append(t)
        return correlated(FLOW)(x, t)

    with jax.disable_jit():
        recipe(conditional(denoise), FLOW, {}, (1, 2, 1), KEYS, known=known)
    return images, times


@pytest.mark.slow
@pytest.mark.spread(1)
@pytest.mark.parametrize("method", [Replacement(), Blending(from_noise=False)], ids=str)
def test_sampling_begins_with_the_known_image(method):
    with_known, without = seen(method, first_pixel_known(5))[0], seen(method)[0]
    np.testing.assert_allclose(with_known[0] - without[0], [[KNOWN / 3, 0.0]] * 5, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_blending_begins_with_noise_alone_and_diffuses_the_known_image_by_it_in_each_later_step():
    (first, *later), times = seen(Blending(), first_pixel_known(5))
    np.testing.assert_array_equal(first, seen(None)[0][0])
    noise = first[:, 0] / (2 / 3)  # sigma
    for image, t in zip(later, times[1:], strict=True):
        np.testing.assert_allclose(image[:, 0], (1 - t) * KNOWN + t * noise, rtol=1e-9)


@pytest.mark.spread(2)
@pytest.mark.parametrize("t_end", [None, 1e-3])
@pytest.mark.parametrize("sampler", [Ddim(1.0), DpmSolver2M()], ids=str)
def test_blending_is_an_overwriting_of_the_known_part_after_each_step(sampler, t_end):
    """Whatever the sampler makes of it, be it with noise or with a memory."""
    recipe = Recipe(sampler, Uniform(), ClassifierFree(), 5, inpainting=Blending(), t_end=t_end)
    known, noise = first_pixel_known(5), np.random.default_rng(0).normal(size=(5, 1, 2, 1))
    times, denoise = [*recipe.grid(VP, 5), *([] if t_end is None else [t_end])], stateless(correlated(VP))
    state = sampler.init(noise * VP.signal(jnp.asarray(times[0])).sigma)
    for i, (t, t_next) in enumerate(itertools.pairwise(map(jnp.asarray, times))):
        state = sampler.step(denoise.call, VP, state, t, t_next, fold_in(KEYS, jnp.int32(i)))
        alpha, sigma = VP.signal(t_next)
        state = state._replace(x=jnp.where(known.mask, state.x, alpha * known.values + sigma * noise))
    end = denoise(state.x, jnp.asarray(times[-1])).x_0 if t_end is None else state.x
    found = recipe(
        conditional(correlated(VP)), VP, {}, (1, 2, 1), KEYS, known=known, noise=jnp.asarray(noise)
    )
    np.testing.assert_allclose(found, np.where(known.mask, end, known.values), rtol=1e-7)


def test_blending_in_two_parts_is_that_of_the_whole():
    recipe = Recipe(Ddim(), Uniform(), ClassifierFree(), 6, inpainting=Blending())

    def made(recipe, **start):
        return recipe(
            conditional(correlated(VP)), VP, {}, (1, 2, 1), KEYS, known=first_pixel_known(5), **start
        )

    noisy = made(dataclasses.replace(recipe, until=0.5))
    np.testing.assert_allclose(made(dataclasses.replace(recipe, below=0.5), x=noisy), made(recipe), rtol=1e-7)


def test_a_mask_of_pixels_is_one_of_latents():
    """Blending takes that of the nearest pixel, as torch does; `Replacement` asks all pixels of a latent."""
    torch = pytest.importorskip("torch")
    mask = np.random.default_rng(0).random((2, 16, 24, 1)) < 0.3
    recipes = [
        Recipe(Ddim(), Uniform(), ClassifierFree(), 4, inpainting=each)
        for each in (Blending(), Replacement())
    ]
    first, every = (np.asarray(recipe.data_mask(jnp.asarray(mask), (4, 6, 4))) for recipe in recipes)
    known = torch.tensor(~mask).permute(0, 3, 1, 2).float()
    nearest = torch.nn.functional.interpolate(known, size=(4, 6)) == 1
    all_known = torch.nn.functional.avg_pool2d(known, 4) == 1
    for found, expected in ((first, nearest), (every, all_known)):
        np.testing.assert_array_equal(found, ~expected.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(recipes[0].data_mask(jnp.asarray(mask), (16, 24, 4)), mask)


def test_known_images_without_a_method_are_refused():
    recipe = Recipe(Ddim(), Uniform(), ClassifierFree(), 4)
    with pytest.raises(UserError, match=r"sampling.inpainting=None"):
        recipe(lambda x, t, conditions, drop: x, FLOW, {}, (1, 2, 1), KEYS, known=first_pixel_known(5))


@pytest.mark.parametrize("method", [Replacement(), Blending(from_noise=False)], ids=str)
def test_configs_build_the_same_recipe(method):
    recipe = Recipe(Ddim(), Uniform(), ClassifierFree(), 4, inpainting=method)
    assert build(from_json(to_json(describe(recipe)))) == recipe
