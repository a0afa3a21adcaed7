"""An image, or its embedding, as a condition through a frozen encoder such as CLIP's (unCLIP)."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning.condition import Condition, Shape, Values
from jaxdiff.conditioning.image import path_in
from jaxdiff.conditioning.nulls import Null
from jaxdiff.data.image_files import read_image
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError
from jaxdiff.models.clip_vision import ClipVisionEncoder, clip_pixels
from jaxdiff.models.dual_encoder import unit
from jaxdiff.typing import Array, Bool, Keys

FIELDS = ("pixels", "vector", "given")


class EncodedImage(Condition):
    """Encoded image: the embedding of an image by a frozen encoder, as the vector of another condition.

    A user gives images uint8 [n, height, width, 3] of any size, or embeddings [n, width], such as those of a prior, or
    a list of both. Embeddings are used at unit length, times ``sqrt(width)``, so that their mean square is 1. The
    encoder's parameters are those of a module of the denoiser: name them in ``DenoisingTask.pretrained``, as
    ``conditioner/parts_NAME/encoder``.

    Attributes:
      encoder: the image encoder.
      part: the condition that receives the vector, such as `jaxdiff.conditioning.vector_embedding.EmbeddedVector`. Its
        drop rate and its null are those of this condition.
    """

    encoder: ClipVisionEncoder
    part: Condition

    @nn.compact
    def __call__(self, values: Mapping[str, Array], drop: Bool[Array, "batch"]) -> Embeddings:
        """Embed images, or the embeddings where they are given."""
        made = self.encoder(values["pixels"]).vector
        assert made is not None  # an image encoder has one
        vector = jnp.where(values["given"][:, None], values["vector"], made)
        return self.part(math.sqrt(vector.shape[-1]) * unit(vector), drop)

    @nn.nowrap
    def draw(self, values: Values, keys: Keys, train: bool) -> dict[str, Array]:
        """Images of a batch as the encoder reads them; what `read` returns stays."""
        if isinstance(values, Mapping):
            return dict(values)
        empty = self.example(len(values))
        if values.ndim == 2:
            return {**empty, "vector": values, "given": jnp.ones(len(values), bool)}
        return {**empty, "pixels": self._pixels(values)}

    @nn.nowrap
    def read(self, value: object, name: str = "image") -> dict[str, np.ndarray]:
        """One image or embedding, or several."""
        if isinstance(value, Mapping):
            return {key: np.asarray(array) for key, array in value.items()}
        if isinstance(value, list | tuple) and any(np.ndim(each) in (1, 3) for each in value):
            parts = [self.read(each, name) for each in value]
            return {key: np.stack([part[key] for part in parts]) for key in FIELDS}
        array = np.asarray(value)
        if np.issubdtype(array.dtype, np.floating) and array.shape[-1:] == (self.encoder.projection,):
            batch = array.shape[:-1]
            return _on_host({**self._empty(batch), "vector": array, "given": np.ones(batch, bool)})
        self._check_images(array, name)
        batch = array.shape[:-3]
        pixels = self._pixels(array.reshape(-1, *array.shape[-3:]))
        return _on_host({**self._empty(batch), "pixels": pixels.reshape(*batch, *pixels.shape[1:])})

    @nn.nowrap
    def check(self, values: object, name: str = "image") -> None:
        """Raise `UserError` unless these are values of `read` whose embeddings are finite and not zero."""
        given = values if isinstance(values, Mapping) else self.read(values, name)
        vectors = np.asarray(given["vector"])[np.asarray(given["given"])]
        bad = ~np.isfinite(vectors).all(axis=-1) | ~np.any(vectors, axis=-1)
        if bad.any():
            raise UserError(
                f"{name}[{np.flatnonzero(bad)[0]}]: expected an embedding of finite numbers that are not all 0, got "
                "another. Fix: give an image, or an embedding of the encoder"
            )

    @nn.nowrap
    def example(self, batch: int, data_shape: Shape | None = None) -> dict[str, Array]:
        return {name: jnp.asarray(array) for name, array in self._empty((batch,)).items()}

    @nn.nowrap
    def parse(self, text: str, name: str) -> list[Any]:
        """The image of a file, or the embeddings of a .npy file."""
        if pathlib.Path(text).suffix != ".npy":
            return [read_image(name, text, 3)]
        try:
            return list(np.atleast_2d(np.load(text, allow_pickle=False)))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"{name}={text}: expected embeddings, got an error: {reason}. Fix: give floats"
            ) from None

    @nn.nowrap
    def from_json(self, value: Any, name: str, folder: pathlib.Path) -> Any:
        """The image of a file, relative to `folder`; or an embedding, a list of numbers."""
        if isinstance(value, list):
            return np.asarray(value, np.float32)
        return None if value is None else self.parse(path_in(folder, value, name), name)[0]

    @property
    def drop_rate(self) -> float:
        return self.part.drop_rate

    @property
    def null(self) -> Null:
        return self.part.null

    @nn.nowrap
    def _pixels(self, images: Any) -> Array:
        """Bytes as the encoder reads them."""
        return clip_pixels(jnp.asarray(images).astype(jnp.float32) / 255, self.encoder.image_size)

    @nn.nowrap
    def _empty(self, batch: tuple[int, ...]) -> dict[str, Any]:
        side = self.encoder.image_size
        return {
            "pixels": np.zeros((*batch, side, side, 3), np.float32),
            "vector": np.zeros((*batch, self.encoder.projection), np.float32),
            "given": np.zeros(batch, bool),
        }

    @nn.nowrap
    def _check_images(self, array: np.ndarray, name: str) -> None:
        if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3 or 0 in array.shape:
            got = f"{array.dtype}{list(array.shape)}"
            raise UserError(
                f"{name}={got}: expected images uint8 [n, height, width, 3], or embeddings, floats "
                f"[n, {self.encoder.projection}], got {got}. Fix: give one of these"
            )


def _on_host(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays as NumPy's, each in its type."""
    types = {"pixels": np.float32, "vector": np.float32, "given": bool}
    return {name: np.asarray(values[name], dtype) for name, dtype in types.items()}
