"""Contrastive learning of images and texts: the task of CLIP (Radford et al. 2021)."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from jaxdiff.data.sources import LOSS_WEIGHT
from jaxdiff.data.text import Tokenizer
from jaxdiff.errors import UserError, expect, positive
from jaxdiff.models.clip_vision import clip_pixels
from jaxdiff.models.dual_encoder import DualEncoder
from jaxdiff.models.layers import HIGHEST
from jaxdiff.tasks.protocols import TaskContext
from jaxdiff.typing import Array, Batch, Float, Key, Metrics, Params, Weights

IMAGE_VECTOR, TEXT_VECTOR = "image_vector", "text_vector"
"""The names of the unit vectors among the predictions of a `ContrastiveTask`."""


@dataclasses.dataclass(frozen=True)
class ContrastiveTask:
    """Find the text of each image and the image of each text, among all of a batch (Radford et al. 2021, figure 3).

    The loss is the symmetric cross-entropy of the cosines of all pairs, times a learned factor. It is over the global
    batch: the examples of other devices count as those of one's own. Equal texts in a batch count as different, as in
    the paper.

    Attributes:
      network: the two encoders.
      tokenizer: text to ids; must be the same in `Tokenize` in the data.
      image_shape: (height, width, channels) of a stored image; the encoder resizes it.
      max_scale: bound of the learned factor; 100 in the paper.
      image_field, text_field: the fields of the data with images uint8 and with ids.
      couples_examples: the loss of an example depends on the others of its batch, so no batch may be split.
    """

    network: DualEncoder
    tokenizer: Tokenizer
    image_shape: tuple[int, ...]
    max_scale: float = 100.0
    image_field: str = "image"
    text_field: str = "text"

    def __post_init__(self):
        positive(self, "max_scale")

    @property
    def couples_examples(self) -> bool:
        return True

    @property
    def frozen(self) -> Mapping[str, Weights]:
        return FrozenDict()

    def check(self, example: Mapping[str, Any], num_classes: int | None) -> None:
        """Raise `UserError` unless an example has an image of the right shape, and a text's ids."""
        for name in (self.image_field, self.text_field):
            fix = "name the fields of images and of texts, and tokenize the texts in data.conditions"
            expect(name in example, "config.data", name, "a field of the examples", fix, ", ".join(example))
        weighted = LOSS_WEIGHT in example
        fix = "leave out loss_weights"
        expect(not weighted, "config.data", LOSS_WEIGHT, "examples without weights in the loss", fix, "some")
        image = np.asarray(example[self.image_field])
        if image.dtype != np.uint8 or image.shape != tuple(self.image_shape):
            got = f"{image.dtype}{list(image.shape)}"
            raise UserError(
                f"config.task.image_shape={tuple(self.image_shape)}: expected the shape of the examples, images uint8, "
                f"got {got}. Fix: use the same shape"
            )
        self.tokenizer.check(np.asarray(example[self.text_field])[None], f"config.data.{self.text_field}")
        self._check_widths()

    def _check_widths(self) -> None:
        """Raise `UserError` unless both encoders give vectors of one width."""
        encoders = {"image": (self.network.image, self._pixels(1)), "text": (self.network.text, self._ids(1))}
        widths, fix = {}, "use ClipTextEncoder(pooled=True), or PooledEncoder"
        for name, (encoder, inputs) in encoders.items():
            vector = jax.eval_shape(functools.partial(_vector_of, encoder), inputs)
            kind, field = type(encoder).__name__, f"config.task.network.{name}"
            expect(vector is not None, field, kind, "an encoder with a vector", fix, "none")
            widths[name] = vector.shape[-1]
        expect(widths["image"] == widths["text"], "config.task.network", widths, "vectors of one width",
               "change a projection")  # fmt: skip

    def init(self, key: Key[Array, ""]) -> Params:
        """Initial parameters, each boxed with the logical names of its axes."""
        return self.network.init(key, self._pixels(1), self._ids(1))["params"]

    def init_task_state(self) -> Any:
        """None: `()`."""
        return ()

    def draw(self, batch: Batch, context: TaskContext, key: Key[Array, ""]) -> dict:
        """The images as the encoder reads them, and the ids. Nothing is random."""
        return {"pixels": self._read(batch[self.image_field]), "ids": batch[self.text_field]}

    def loss(
        self, params: Params, context: TaskContext, examples: dict, key: Key[Array, ""], train: bool
    ) -> tuple[Float[Array, "batch"], Metrics]:
        """The cross-entropy of each image's text and of each text's image, averaged."""
        made: Any = self.network.apply({"params": params}, examples["pixels"], examples["ids"])
        images, texts, log_scale = made
        scale = jnp.exp(at_most(log_scale, math.log(self.max_scale)))
        losses = contrastive_loss(images, texts, scale)
        cosines = jnp.matmul(images, texts.T, precision=HIGHEST)
        found = jnp.argmax(cosines, axis=1) == jnp.arange(len(cosines))
        return losses, {"text_of_image": jnp.mean(found), "scale": scale}

    def update_task_state(self, task_state: Any, examples: dict, losses: Float[Array, "batch"]) -> Any:
        return task_state

    def check_fields(self, fields: Mapping[str, np.ndarray]) -> None:
        """Raise `UserError` unless images are uint8 [n, height, width, channels], and texts ids of the tokenizer."""
        images, ids = fields.get(self.image_field), fields.get(self.text_field)
        if images is not None:
            fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] == self.image_shape[-1]
            expected = f"uint8 [n, height, width, {self.image_shape[-1]}]"
            fix = "give bytes from 0 to 255, and image[None] for one image"
            expect(fits, self.image_field, f"{images.dtype}{list(images.shape)}", expected, fix)
        if ids is not None:
            self.tokenizer.check(ids, self.text_field)

    def predict(self, params: Params, frozen: Mapping[str, Params], fields: Batch) -> dict[str, Array]:
        """The unit vectors of the images and of the texts that are given, [batch, width] each."""
        found = {}
        apply = functools.partial(self.network.apply, {"params": params})
        if self.image_field in fields:
            found[IMAGE_VECTOR] = apply(self._read(fields[self.image_field]), method="image_vectors")
        if self.text_field in fields:
            found[TEXT_VECTOR] = apply(fields[self.text_field], method="text_vectors")
        return found

    def _read(self, images: Array) -> Array:
        size = getattr(self.network.image, "image_size", self.image_shape[0])
        return clip_pixels(images.astype(jnp.float32) / 255, size)

    def _pixels(self, batch: int) -> Array:
        return self._read(jnp.zeros((batch, *self.image_shape), jnp.float32))

    def _ids(self, batch: int) -> Array:
        return jnp.zeros((batch, self.tokenizer.length), jnp.int32)


def _vector_of(encoder: Any, inputs: Array) -> Array | None:
    """The vector of an encoder with initial parameters."""
    return encoder.init_with_output(jax.random.key(0), inputs)[0].vector


def contrastive_loss(
    images: Float[Array, "batch dim"], texts: Float[Array, "batch dim"], scale: Float[Array, ""]
) -> Float[Array, "batch"]:
    """The symmetric cross-entropy of pairs (Radford et al. 2021, figure 3): its mean is the loss of the batch.

    Args:
      images, texts: unit vectors; row i of both is a pair.
      scale: factor of the cosines.
    """
    logits = scale * jnp.matmul(images, texts.T, precision=HIGHEST)
    right = jnp.diagonal(logits)
    return (jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)) / 2 - right


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def at_most(x: Float[Array, ""], most: float) -> Float[Array, ""]:
    """``min(x, most)``, whose gradient still moves x down where it is at the bound, and never up."""
    return jnp.minimum(x, most)


def _at_most_forward(x: Array, most: float) -> tuple[Array, Array]:
    return jnp.minimum(x, most), x


def _at_most_backward(most: float, x: Array, gradient: Array) -> tuple[Array]:
    return (jnp.where((x >= most) & (gradient < 0), 0.0, gradient),)


at_most.defvjp(_at_most_forward, _at_most_backward)
