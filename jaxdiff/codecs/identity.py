"""Identity: examples that are diffused as they are stored, such as embeddings or latents."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.core import FrozenDict

from jaxdiff.codecs.protocol import Shape
from jaxdiff.errors import UserError, expect
from jaxdiff.typing import Array, Keys, Params, Stored, Weights


@dataclasses.dataclass(frozen=True)
class Identity:
    """Floating-point examples of any rank, unscaled."""

    @property
    def frozen(self) -> Mapping[str, Weights]:
        return FrozenDict()

    def data_shape(self, stored_shape: Shape) -> Shape:
        fix = "give the axes of one example"
        expect(len(stored_shape) > 0, "image_shape", stored_shape, "at least one axis", fix)
        return stored_shape

    def example(self, batch: int, stored_shape: Shape) -> np.ndarray:
        return np.zeros((batch, *stored_shape), np.float32)

    def encode(self, frozen: Mapping[str, Params], stored: Stored, keys: Keys) -> Array:
        return stored.astype(np.float32)

    def decode(self, frozen: Mapping[str, Params], x_0: Array) -> Array:
        return x_0

    def checked(self, name: str, stored: Any) -> np.ndarray:
        array = np.asarray(stored)
        if not np.issubdtype(array.dtype, np.floating):
            given = f"{name}={array.dtype}{list(array.shape)}"
            fix = "give float32 examples, or the codec Pixels for images"
            raise UserError(f"{given}: expected floats, got {array.dtype}. Fix: {fix}")
        return array

    def stored(self, decoded: np.ndarray) -> np.ndarray:
        finite = np.asarray(np.isfinite(decoded).reshape(len(decoded), -1).all(axis=1))
        if not finite.all():
            bad = np.flatnonzero(~finite)
            raise UserError(
                f"examples[{bad[0]}]: expected finite numbers, got NaN or infinity, in {len(bad)} of {len(finite)} "
                "examples. Fix: look at the training loss; try an earlier checkpoint, float32, or less guidance"
            )
        return decoded
