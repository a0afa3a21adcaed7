"""Autoencoding: the task of the autoencoders of latent diffusion (Rombach et al. 2022, appendix G)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict

from jaxdiff.codecs.pixels import Pixels
from jaxdiff.errors import between, expect, one_of, positive
from jaxdiff.models.autoencoder_kl import AutoencoderKL
from jaxdiff.models.lpips import Lpips
from jaxdiff.process.per_example import mean_per_example
from jaxdiff.tasks.protocols import TaskContext
from jaxdiff.typing import Array, Batch, Float, Images, Key, Metrics, Params, Weights

NETWORK, DISCRIMINATOR, PERCEPTUAL = "network", "discriminator", "perceptual"
"""The names of the trees of parameters."""

RECONSTRUCTION, LATENT = "reconstruction", "latent"
"""The names of the predictions: images in [-1, 1], and the means of the latents."""

_pixels = Pixels()


@dataclasses.dataclass(frozen=True)
class AutoencodingTask:
    """A KL autoencoder: reconstruct images from a sample of the posterior of their latents.

    The loss of an image is its mean distance, plus weighted terms: the KL divergence of the posterior from the standard
    normal distribution, per value of the image; a perceptual distance; and, from `adversarial_start` on, the hinge loss
    of a discriminator (Esser et al. 2021, "VQGAN"). The discriminator is trained at the same time, and by its own term
    only. Its optimizer can be another one, see `jaxdiff.training.per_module`. The adversarial weight is fixed: it does
    not follow the ratio of gradients as in the released code.

    Attributes:
      network: the autoencoder.
      image_shape: (height, width, channels) of a stored image.
      distance: "l1" or "l2", of pixels in [-1, 1].
      kl_weight: of the KL divergence; 1e-6 in Stable Diffusion.
      perceptual: the weights of `Lpips`, a user's own files; None for no perceptual term.
      perceptual_weight: of the perceptual distance.
      discriminator: module from images to scores, such as `PatchDiscriminator`; None for no adversarial term.
      adversarial_weight: of the autoencoder's adversarial term; 0.5 in Stable Diffusion.
      adversarial_start: the step from which the adversarial term and the discriminator are trained.
      image_field: the field of the data with images uint8.
    """

    network: AutoencoderKL
    image_shape: tuple[int, ...]
    distance: str = "l1"
    kl_weight: float = 1e-6
    perceptual: Weights | None = None
    perceptual_weight: float = 1.0
    discriminator: nn.Module | None = None
    adversarial_weight: float = 0.5
    adversarial_start: int = 50_000
    image_field: str = "image"

    def __post_init__(self):
        one_of(self, "distance", ("l1", "l2"))
        positive(self, "perceptual_weight", "adversarial_weight")
        between(self, "kl_weight", 0.0, float("inf"))
        between(self, "adversarial_start", 0, float("inf"))
        height, width, channels = self.image_shape
        factor, expected = self.network.factor, self.network.image_channels
        fits = height % factor == width % factor == 0 and channels == expected
        wanted = f"sides that are multiples of {factor}, and {expected} channels"
        expect(
            fits,
            "config.task.image_shape",
            tuple(self.image_shape),
            wanted,
            "change the images or the network",
        )

    @property
    def frozen(self) -> Mapping[str, Weights]:
        """The network of the perceptual distance."""
        return FrozenDict({} if self.perceptual is None else {PERCEPTUAL: self.perceptual})

    @property
    def _perceptual_network(self) -> str:
        """VGG unless the weights say otherwise, as `LpipsFiles` does."""
        return getattr(self.perceptual, "network", "vgg")

    def check(self, example: Mapping[str, Any], num_classes: int | None) -> None:
        """Raise `UserError` unless an example has an image of the right shape."""
        name, fix = self.image_field, "name the field of the images"
        expect(name in example, "config.task.image_field", name, f"one of {', '.join(example)}", fix)
        shape = tuple(_pixels.checked(f"config.data.{name}", example[name]).shape)
        expected = f"the shape of the examples, {shape}"
        expect(
            shape == tuple(self.image_shape), "config.task.image_shape", self.image_shape, expected, "use it"
        )

    def init(self, key: Key[Array, ""]) -> Params:
        """Initial parameters of the autoencoder and of the discriminator, boxed with the names of their axes."""
        keys = jax.random.split(key)
        x = jnp.zeros((1, *self.image_shape))
        found = {NETWORK: self.network.init(keys[0], x)["params"]}
        if self.discriminator is not None:
            found[DISCRIMINATOR] = self.discriminator.init(keys[1], x)["params"]
        return found

    def init_task_state(self) -> Any:
        """None: `()`."""
        return ()

    def draw(self, batch: Batch, context: TaskContext, key: Key[Array, ""]) -> dict:
        """Images in [-1, 1], and the noise of their latents."""
        stored = batch[self.image_field]
        x = _pixels.encode({}, stored, jax.random.split(key, len(stored)))
        height, width, _ = self.image_shape
        latents = (height // self.network.factor, width // self.network.factor, self.network.latent_channels)
        return {"x": x, "noise": jax.random.normal(key, (len(stored), *latents))}

    def loss(
        self, params: Params, context: Any, examples: dict, key: Key[Array, ""], train: bool
    ) -> tuple[Float[Array, "batch"], Metrics]:
        """The loss of each image, that of the discriminator included."""
        x = examples["x"]
        apply = functools.partial(self.network.apply, {"params": params[NETWORK]})
        posterior: Any = apply(x, method="encode")
        mean, log_variance = posterior
        made: Any = apply(mean + jnp.exp(log_variance / 2) * examples["noise"], method="decode")
        made = made.astype(jnp.float32)
        difference = jnp.abs(made - x) if self.distance == "l1" else jnp.square(made - x)
        terms = {"reconstruction": mean_per_example(difference)}
        terms["kl"] = kl_per_value(mean, log_variance, x)
        losses = terms["reconstruction"] + self.kl_weight * terms["kl"]
        if self.perceptual is not None:
            distance: Any = Lpips(self._perceptual_network).apply(
                {"params": context.frozen[PERCEPTUAL]}, made, x
            )
            terms["perceptual"] = distance
            losses = losses + self.perceptual_weight * terms["perceptual"]
        if self.discriminator is not None:
            terms |= self._adversarial(params[DISCRIMINATOR], x, made)
            begun = context.step >= self.adversarial_start
            adversarial = self.adversarial_weight * terms["adversarial"] + terms["discriminator"]
            losses = losses + jnp.where(begun, adversarial, 0.0)
        return losses, {name: jnp.mean(term) for name, term in terms.items()}

    def _adversarial(self, params: Params, x: Images, made: Images) -> dict[str, Array]:
        """The autoencoder's term, which is without gradient in the discriminator, and the reverse."""
        assert self.discriminator is not None
        score = functools.partial(_scores, self.discriminator)
        fooled = score(jax.lax.stop_gradient(params), made)
        real, fake = score(params, x), score(params, jax.lax.stop_gradient(made))
        hinge = (jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)) / 2
        return {"adversarial": mean_per_example(-fooled), "discriminator": mean_per_example(hinge)}

    def update_task_state(self, task_state: Any, examples: dict, losses: Float[Array, "batch"]) -> Any:
        return task_state

    def check_fields(self, fields: Mapping[str, np.ndarray]) -> None:
        """Raise `UserError` unless there are images uint8 [n, height, width, channels] with sides that fit."""
        images = np.asarray(fields.get(self.image_field, ()))
        factor, (*_, channels) = self.network.factor, self.image_shape
        fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] == channels
        fits = fits and not any(side % factor for side in images.shape[1:3])
        got = f"{images.dtype}{list(images.shape)}" if self.image_field in fields else "none"
        expected = f"uint8 [n, height, width, {channels}] with sides that are multiples of {factor}"
        expect(fits, self.image_field, got, expected, "resize the images")

    def predict(self, params: Params, frozen: Mapping[str, Params], fields: Batch) -> dict[str, Array]:
        """The means of the latents, and the images that are decoded from them."""
        stored = fields[self.image_field]
        x = _pixels.encode(frozen, stored, jax.random.split(jax.random.key(0), len(stored)))
        apply = functools.partial(self.network.apply, {"params": params[NETWORK]})
        posterior: Any = apply(x, method="encode")
        made: Any = apply(posterior[0], method="decode")
        return {LATENT: posterior[0], RECONSTRUCTION: made.astype(jnp.float32)}


def kl_per_value(mean: Array, log_variance: Array, x: Images) -> Float[Array, "batch"]:
    """The KL divergence of N(mean, variance) from N(0, 1) in nats, over the number of values of an image of `x`."""
    each = (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance) / 2
    return jnp.sum(each, axis=(1, 2, 3)) / (x.size / x.shape[0])


def _scores(discriminator: nn.Module, params: Params, x: Images) -> Array:
    found: Any = discriminator.apply({"params": params}, x)
    return found
