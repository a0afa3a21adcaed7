"""Conditions that are numbers: sizes and crops of an image, augmentations, the strength of an effect."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Num

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.nulls import Null
from jaxdiff.conditioning.vector import sinusoids, vector_or_features
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError, require
from jaxdiff.models.layers import HIGHEST, Dense, kernel_init
from jaxdiff.typing import Array, Bool


class Continuous(nn.Module):
    """Some numbers about the whole image.

    They are mapped by a matrix: zeros say nothing, as for EDM's augmentation labels (Karras et al. 2022, appendix F.2).
    With `frequencies`, each number becomes sinusoids first, and two dense layers map those of all numbers, as for the
    sizes and crops of SDXL (Podell et al. 2023, section 2.2).

    Attributes:
      size: how many numbers an image has, values [batch, size]; None for a single one, values [batch].
      width: length of the vector.
      frequencies: sine and cosine pairs of each number; 0 for the matrix.
      max_period: of the slowest sinusoid, as a multiple of 2 pi.
      scale: factor of the numbers. Sinusoids want them spread over hundreds, as sizes in pixels are.
      default: the numbers of an image about which nothing is said; None if they must be given.
      drop_rate: how often training shows the null.
      null: what the vector is then, see `Null`.
      before_mapping: joined to the features of the noise level before they are mapped (EDM), not after (SDXL).
    """

    size: int | None
    width: int
    frequencies: int = 0
    max_period: float = 10000.0
    scale: float = 1.0
    default: float | tuple[float, ...] | None = None
    drop_rate: float = 0.0
    null: Null = "zero"
    before_mapping: bool = False

    def __post_init__(self):
        some = self.size is None or self.size > 0
        require(some, "size", self.size, "there is no number", "give 1 or more, or None for one")
        require(self.width > 0, "width", self.width, "a vector needs at least one number", "try 256")
        require(self.frequencies >= 0, "frequencies", self.frequencies, "it is a count", "give 0 or more")
        require(self.max_period > 1, "max_period", self.max_period, "it is the longest period", "try 10000.0")
        fits = self.default is None or np.shape(self.default) in ((), self._shape())
        require(fits, "default", self.default, f"size is {self.size}", "give so many numbers, or one for all")
        nulls.check(self.null, self.drop_rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, values: Num[Array, "batch *size"], drop: Bool[Array, "batch"]) -> Embeddings:
        numbers = self.scale * values.reshape(values.shape[0], -1)
        if self.frequencies:
            waves = sinusoids(numbers.reshape(-1), self.frequencies, self.max_period)
            waves = waves.reshape(numbers.shape[0], -1)  # those of the first number, those of the second, ...
            hidden = jax.nn.silu(Dense(self.width, name="dense_0")(waves))
            vectors = Dense(self.width, name="dense_1")(hidden)
        else:
            kernel = self.param("kernel", kernel_init(zero=False), (numbers.shape[1], self.width))
            vectors = jnp.matmul(numbers, kernel, precision=HIGHEST)
        vectors = nulls.instead(self, vectors, drop, nn.initializers.zeros)
        return vector_or_features(vectors, self.before_mapping)

    @nn.nowrap
    def example(self, batch: int, image_shape: tuple[int, int, int] | None = None) -> Array:
        return jnp.zeros((batch, *self._shape()))

    @nn.nowrap
    def read(self, value: object) -> np.ndarray:
        """Numbers as an array; a single one stands for all `size` of them."""
        numbers = np.asarray(value)
        return np.broadcast_to(numbers, self._shape()) if numbers.ndim == 0 else numbers

    @nn.nowrap
    def check(self, values: object, name: str = "numbers") -> None:
        """Raise `UserError` unless there are `size` finite numbers for each image."""
        numbers = np.asarray(values)
        if numbers.dtype.kind not in "iuf" or numbers.shape[1:] != self._shape():
            each = "one number" if self.size is None else f"{self.size} numbers"
            given = f"{name}={numbers.dtype}{list(numbers.shape)}"
            raise UserError(f"{given}: every image has {each}. Fix: give such an array, or {each} for all")
        finite = bool(np.all(np.isfinite(numbers)))
        require(finite, name, numbers.tolist(), "not all are finite", "give finite numbers")

    @nn.nowrap
    def _shape(self) -> tuple[int, ...]:
        return () if self.size is None else (self.size,)
