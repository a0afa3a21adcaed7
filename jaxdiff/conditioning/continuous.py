"""Continuous conditions: sizes and crops of an image, augmentation labels, the strength of an effect."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Num

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.condition import Condition, Shape
from jaxdiff.conditioning.nulls import Null
from jaxdiff.conditioning.vector import fourier_features, vector_or_features
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError, expect, positive
from jaxdiff.models.layers import HIGHEST, Dense, kernel_init
from jaxdiff.typing import Array, Bool, Float


class Continuous(Condition):
    """Continuous condition: embeds one or several real numbers about an image.

    - By a matrix: zeros give the vector 0, as for EDM's augmentation labels (Karras et al. 2022, appendix F.2).
    - With `frequencies`: by Fourier features of each number, which two dense layers map together.
    - With `width=None`: the numbers or their Fourier features themselves, for `Conditioner.concatenated`, as the sizes
      and crops of SDXL (Podell et al. 2023, section 2.2).

    Attributes:
      size: how many numbers an image has, values [batch, size]; None for a single one, values [batch].
      width: length of the vector; None for no layer.
      frequencies: sine and cosine pairs of each number; 0 for the number itself.
      max_period: period of the slowest sinusoid, as a multiple of 2 pi.
      scale: factor of the numbers. Fourier features resolve numbers that spread over hundreds, as sizes in pixels do.
      default: the numbers of an image for which none are given; None if they are required.
      drop_rate: probability of showing the null in training.
      null: the vector of dropped numbers, see `Null`.
      null_value: with ``null="value"``, the numbers that replace dropped ones.
      before_mapping: added to the Fourier features of the noise level before their mapping (EDM), not after (SDXL).
    """

    size: int | None
    width: int | None
    frequencies: int = 0
    max_period: float = 10000.0
    scale: float = 1.0
    default: float | tuple[float, ...] | None = None
    drop_rate: float = 0.0
    null: Null = "zero"
    before_mapping: bool = False
    null_value: float | tuple[float, ...] | None = None

    def __post_init__(self):
        positive(self, "size", "width")
        expect(self.frequencies >= 0, "frequencies", self.frequencies, "a count", "give 0 or more")
        expect(self.max_period > 1, "max_period", self.max_period, "a number > 1", "try 10000.0")
        for name in ("default", "null_value"):
            value, fix = getattr(self, name), "give these, or one for all"
            fits = value is None or np.shape(value) in ((), self._shape())
            expect(fits, name, value, f"{self._numbers()}, as size={self.size}", fix)
        nulls.check(self.null, self.drop_rate, (*nulls.KINDS, "value"))
        both = (self.null == "value") == (self.null_value is not None)
        expect(both, "null_value", self.null_value, "numbers with null='value' only", "give both, or neither")
        super().__post_init__()

    @nn.compact
    def __call__(self, values: Num[Array, "batch *size"], drop: Bool[Array, "batch"]) -> Embeddings:
        if self.null_value is not None:
            null = jnp.broadcast_to(jnp.asarray(self.null_value, jnp.float32), values.shape)
            values = jnp.where(drop.reshape(-1, *(1,) * (values.ndim - 1)), null, values)
        numbers = self.scale * values.reshape(values.shape[0], -1)
        if self.frequencies:
            fourier = fourier_features(numbers.reshape(-1), self.frequencies, self.max_period)
            numbers = fourier.reshape(numbers.shape[0], -1)  # [b, n * 2f], number by number
        vectors = numbers if self.width is None else self._layers(numbers, self.width)
        vectors = nulls.replace_dropped(self, self.null, vectors, drop, nn.initializers.zeros)
        return vector_or_features(vectors, self.before_mapping)

    def _layers(self, numbers: Float[Array, "batch channels"], width: int) -> Float[Array, "batch width"]:
        if self.frequencies:
            hidden = nn.silu(Dense(width, name="dense_0")(numbers))
            return Dense(width, name="dense_1")(hidden)
        kernel = self.param("kernel", kernel_init(zero=False), (numbers.shape[1], width))
        return jnp.matmul(numbers, kernel, precision=HIGHEST)

    @nn.nowrap
    def example(self, batch: int, data_shape: Shape | None = None) -> Array:
        return jnp.zeros((batch, *self._shape()))

    @nn.nowrap
    def read(self, value: object, name: str = "numbers") -> np.ndarray:
        """Numbers as an array; a single one stands for all `size` of them."""
        numbers = np.asarray(value)
        return np.broadcast_to(numbers, self._shape()) if numbers.ndim == 0 else numbers

    @nn.nowrap
    def check(self, values: object, name: str = "numbers") -> None:
        """Raise `UserError` unless there are `size` finite numbers for each image."""
        numbers = np.asarray(values)
        if numbers.dtype.kind not in "iuf" or numbers.shape[1:] != self._shape():
            got = f"{numbers.dtype}{list(numbers.shape)}"
            shape = "[n]" if self.size is None else f"[n, {self.size}]"
            raise UserError(
                f"{name}={got}: expected {self._numbers()} per image, got {got}. "
                f"Fix: give an array {shape}, or {self._numbers()} for all images"
            )
        expect(
            bool(np.all(np.isfinite(numbers))),
            name,
            numbers.tolist(),
            "finite numbers",
            "remove NaN and infinity",
        )

    @nn.nowrap
    def _numbers(self) -> str:
        return "one number" if self.size is None else f"{self.size} numbers"

    @nn.nowrap
    def _shape(self) -> tuple[int, ...]:
        return () if self.size is None else (self.size,)


class ImageSize(Continuous):
    """Size of an image: its height and width in pixels. By default that of the images that are generated, so it follows
    their size, as SDXL's original and target size (Podell et al. 2023, section 2.2).

    Attributes:
      size, width, frequencies, null: as in `Continuous`. The defaults are SDXL's: 256 numbers for each side, and no
        null, so that guidance shows the size in both branches.
      default: no field of a config; see `for_images`.
    """

    not_in_configs: ClassVar[frozenset[str]] = frozenset({"default"})

    size: int | None = 2
    width: int | None = None
    frequencies: int = 128
    null: Null = "none"

    @nn.nowrap
    def for_images(self, shape: Shape, data_shape: Shape) -> "ImageSize":
        """This condition with (height, width) of images [height, width, channels] as its default."""
        size = tuple(map(float, shape[:2]))
        return self if self.default == size else self.clone(default=size)
