"""The autoencoder's task: its terms against formulas, who learns from which, and statistics of latents in use."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from jaxdiff.errors import UserError
from jaxdiff.models.autoencoder_kl import AutoencoderKL
from jaxdiff.models.discriminator import PatchDiscriminator
from jaxdiff.models.lpips import LEAST_SIDE, Lpips
from jaxdiff.tasks.autoencoding import PERCEPTUAL, AutoencodingTask, kl_per_value
from jaxdiff.training.step import Context

SHAPE = (8, 8, 3)
NETWORK = AutoencoderKL((4, 4), 1, latent_channels=2, groups=2, middle_attention=False)
DISCRIMINATOR = PatchDiscriminator(4, 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, *SHAPE)).astype(np.uint8)


def task(**options):
    return AutoencodingTask(NETWORK, SHAPE, **{"kl_weight": 0.1, **options})


def adversarial(start=0):
    return task(discriminator=DISCRIMINATOR, adversarial_weight=0.3, adversarial_start=start)


def params_of(chosen, seed=0):
    from flax import linen as nn

    params = nn.meta.unbox(chosen.init(jax.random.key(seed)))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [leaf + 0.1 * rng.standard_normal(leaf.shape) for leaf in leaves])


def losses(chosen, params, step=0):
    context = Context(step=jnp.asarray(step))
    examples = chosen.draw({"image": jnp.asarray(IMAGES)}, context, jax.random.key(1))
    return chosen.loss(params, context, examples, jax.random.key(2), train=True)


def mean_loss(chosen, step=0):
    return lambda params: jnp.mean(losses(chosen, params, step)[0])


def test_the_divergence_is_the_integral():
    mean, log_variance = np.array([0.7, -1.2]), np.array([-0.5, 0.3])

    def density(z, mean, variance):
        return np.exp(-((z - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)

    def integrand(z, i):
        own = density(z, mean[i], np.exp(log_variance[i]))
        return own * np.log(own / density(z, 0, 1))

    expected = sum(integrate.quad(integrand, -9, 9, args=(i,))[0] for i in range(2))
    x = jnp.zeros((1, 2, 3, 1))
    found = kl_per_value(*(jnp.asarray(each).reshape(1, 1, 1, 2) for each in (mean, log_variance)), x)
    np.testing.assert_allclose(found, [expected / 6], rtol=1e-7)


@pytest.mark.slow
@pytest.mark.spread(1)
@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_the_loss_is_the_distance_and_the_weighted_divergence(distance):
    chosen, params = task(distance=distance), params_of(task())
    found, terms = losses(chosen, params)
    examples = chosen.draw({"image": jnp.asarray(IMAGES)}, Context(), jax.random.key(1))
    x = jnp.asarray(IMAGES / 127.5 - 1, jnp.float32)
    np.testing.assert_allclose(examples["x"], x, atol=1e-6)
    apply = {"params": params["network"]}
    mean, log_variance = NETWORK.apply(apply, x, method="encode")
    z = mean + jnp.exp(log_variance / 2) * examples["noise"]
    difference = NETWORK.apply(apply, z, method="decode") - x
    each = np.abs(difference) if distance == "l1" else np.square(difference)
    kl = kl_per_value(mean, log_variance, x)
    np.testing.assert_allclose(found, each.mean(axis=(1, 2, 3)) + 0.1 * kl, rtol=1e-5)
    np.testing.assert_allclose(terms["kl"], np.mean(kl), rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class Given:
    """Weights that tests give directly."""

    network: str = "alex"

    def read(self):
        return {}

    def describe(self):
        return "given"


@pytest.mark.slow
def test_the_perceptual_distance_is_added_with_its_weight():
    side = LEAST_SIDE["alex"] + 1
    options = {"image_shape": (side, side, 3), "kl_weight": 0.1}
    plain = AutoencodingTask(NETWORK, **options)
    chosen = AutoencodingTask(NETWORK, **options, perceptual=Given(), perceptual_weight=0.5)
    params, key = params_of(plain), jax.random.key(1)
    x = jax.random.uniform(key, (2, side, side, 3), minval=-1.0)
    frozen = {PERCEPTUAL: Lpips("alex").init(jax.random.key(3), x, x)["params"]}
    context = Context(step=jnp.asarray(0), frozen=frozen)
    examples = chosen.draw({"image": jnp.asarray(np.uint8(127.5 * (x + 1)))}, context, key)
    without, _ = plain.loss(params, context, examples, key, train=True)
    found, terms = chosen.loss(params, context, examples, key, train=True)
    assert terms["perceptual"] > 1e-3
    np.testing.assert_allclose(jnp.mean(found - without), 0.5 * terms["perceptual"], rtol=1e-4)


@pytest.mark.slow
def test_before_its_start_the_adversarial_term_is_not_there():
    chosen = adversarial(start=5)
    params = params_of(chosen)
    found = losses(chosen, params, step=4)[0]
    np.testing.assert_allclose(found, losses(task(), {"network": params["network"]})[0], rtol=1e-12)
    grads = jax.grad(mean_loss(chosen, step=4))(params)
    assert not any(np.any(leaf != 0) for leaf in jax.tree.leaves(grads["discriminator"]))
    assert np.any(losses(chosen, params, step=5)[0] != found)


@pytest.mark.slow
def test_each_network_learns_from_its_own_terms():
    """The gradients are those of two separate losses, each with the other network as it is."""
    chosen = adversarial()
    params = params_of(chosen)
    grads = jax.grad(mean_loss(chosen))(params)
    examples = chosen.draw({"image": jnp.asarray(IMAGES)}, Context(), jax.random.key(1))

    def made(network):
        mean, log_variance = NETWORK.apply({"params": network}, examples["x"], method="encode")
        z = mean + jnp.exp(log_variance / 2) * examples["noise"]
        return NETWORK.apply({"params": network}, z, method="decode")

    def score(discriminator, x):
        return DISCRIMINATOR.apply({"params": discriminator}, x)

    def generator_loss(network):
        plain = mean_loss(task())({"network": network})
        return plain - 0.3 * jnp.mean(score(params["discriminator"], made(network)))

    def discriminator_loss(discriminator):
        fake = made(params["network"])
        hinge = (
            jax.nn.relu(1 - score(discriminator, examples["x"])),
            jax.nn.relu(1 + score(discriminator, fake)),
        )
        return (jnp.mean(hinge[0]) + jnp.mean(hinge[1])) / 2

    expected = {
        "network": jax.grad(generator_loss)(params["network"]),
        "discriminator": jax.grad(discriminator_loss)(params["discriminator"]),
    }
    jax.tree.map(
        lambda found, known: np.testing.assert_allclose(found, known, rtol=1e-5, atol=1e-6), grads, expected
    )


@pytest.mark.slow
def test_the_loss_of_an_image_does_not_depend_on_others():
    chosen = adversarial()
    params = params_of(chosen)
    examples = chosen.draw({"image": jnp.asarray(IMAGES)}, Context(), jax.random.key(1))
    whole = chosen.loss(params, Context(step=0), examples, jax.random.key(2), train=True)[0]
    one = jax.tree.map(lambda leaf: leaf[1:2], examples)
    alone = chosen.loss(params, Context(step=0), one, jax.random.key(2), train=True)[0]
    np.testing.assert_allclose(whole[1:2], alone, rtol=1e-9)


@pytest.mark.parametrize(
    "fields", [{}, {"image": IMAGES / 255}, {"image": IMAGES[:, 1:]}, {"image": IMAGES[..., :1]}]
)
def test_predictions_need_images_that_the_network_reads(fields):
    with pytest.raises(
        UserError, match=r"image=.*expected uint8 \[n, height, width, 3\] with sides that are multiples of 2"
    ):
        task().check_fields(fields)
    task().check_fields({"image": IMAGES})


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        UserError, match=r"image_shape=.*: expected sides that are multiples of 2, and 3 channels"
    ):
        AutoencodingTask(NETWORK, (9, 8, 3))
    with pytest.raises(UserError, match="distance='l3'"):
        task(distance="l3")
    with pytest.raises(UserError, match=r"image_shape=.*: expected the shape of the examples, \(6, 8, 3\)"):
        task().check({"image": IMAGES[0, :6]}, None)
    with pytest.raises(UserError, match=r"image_field='image': expected one of picture"):
        task().check({"picture": IMAGES[0]}, None)
