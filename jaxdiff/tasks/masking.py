"""Masked loss: the error of each pixel counts as much as the mask beside the image says."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import between, expect
from jaxdiff.tasks.augmentation import Augmentation
from jaxdiff.tasks.objectives import Objective, WeightedError
from jaxdiff.typing import Array, Batch, Data

LEVELS = 255.0


@dataclasses.dataclass(frozen=True)
class LossMask:
    """Mask of the loss: bytes beside each image, 255 where its error counts and 0 where it does not.

    A diffused pixel that covers several pixels of the image, as a latent does, has the mean of their masks. The network
    sees the whole image. The held-out loss is that of the whole image, too.

    Attributes:
      field: the field of the batch with the masks, uint8 [batch, height, width, 1].
      outside: weight where the mask is 0. At 0 these pixels have no gradient at all.
      normalized: divide the weights of an example by their mean, so that its loss does not shrink with its mask. An
        example whose weights are all 0 contributes a loss of 0 either way.
    """

    field: str = "mask"
    outside: float = 0.0
    normalized: bool = True

    def __post_init__(self):
        between(self, "outside", 0.0, 1.0)

    def weights(self, batch: Batch, shape: tuple[int, ...]) -> Data:
        """The weight of each diffused pixel, [batch, height, width, 1], for data of this shape."""
        masks = batch[self.field]
        height, width, _ = shape
        cells = masks.reshape(len(masks), height, masks.shape[1] // height, width, -1, 1)
        share = jnp.mean(cells.astype(jnp.float32), axis=(2, 4)) / LEVELS
        weights = self.outside + (1 - self.outside) * share
        if not self.normalized:
            return weights
        mean = jnp.mean(weights, axis=(1, 2, 3), keepdims=True)
        return weights / jnp.where(mean == 0, 1, mean)

    def stored_example(self, count: int, image_shape: tuple[int, ...]) -> Mapping[str, Array]:
        """Placeholder masks for images of this shape, by the name of their field."""
        return {self.field: jnp.zeros((count, *image_shape[:2], 1), jnp.uint8)}

    def check_task(
        self,
        objective: Objective,
        augmentation: Augmentation | None,
        image_shape: tuple[int, ...],
        data_shape: tuple[int, ...],
    ) -> None:
        """Raise `UserError` where a task cannot weigh its pixels."""
        kind = type(objective).__name__
        fits = isinstance(objective, WeightedError)
        expect(fits, "mask", self, "the objective WeightedError", "use it, or no mask", kind)
        fix = "use transforms of the data, which move the mask with the image"
        expect(augmentation is None, "mask", self, "no augmentation in the task", fix, "one")
        fits = len(image_shape) == len(data_shape) == 3 and all(
            pixels % cells == 0 for pixels, cells in zip(image_shape[:2], data_shape[:2], strict=True)
        )
        expected = f"images with whole pixels for each one of the data {tuple(data_shape)}"
        expect(fits, "mask", self, expected, "use images, or no mask", f"examples {tuple(image_shape)}")

    def check_example(self, example: Mapping[str, Any], image_shape: tuple[int, ...]) -> None:
        """Raise `UserError` unless an example has a mask of the size of its image."""
        fix = "give the data masks: ImageFolder(masks=...), Tfds(fields=...) or Arrays(mask=...)"
        expect(self.field in example, "config.task.mask.field", self.field, "a field of the examples", fix,
               ", ".join(example))  # fmt: skip
        mask, shape = np.asarray(example[self.field]), (*image_shape[:2], 1)
        expect(mask.dtype == np.uint8 and mask.shape == shape, f"config.data.{self.field}",
               f"{mask.dtype}{list(mask.shape)}", f"bytes {list(shape)}, one for each pixel of the image",
               "give the mask the size of the image")  # fmt: skip
