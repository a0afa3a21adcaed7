"""Noise-conditioning augmentation of an embedding: with its noise level it is one vector (Stable unCLIP)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.condition import ImageEncoder, Shape, Values
from jaxdiff.conditioning.noisy import NoiseAugmented
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import expand
from jaxdiff.typing import Array, Bool, Keys

NOISE = "noise"


class NoiseAugmentedEmbedding(NoiseAugmented):
    """Noise-conditioning augmentation of a normalised embedding (Ramesh et al. 2022, section 2.1, and Stable unCLIP).

    The embedding is normalised by a mean and a standard deviation, diffused to a level, and scaled back. The vector is
    the result and the embedding of the level, concatenated, for `Conditioner.concatenated`; a dropped one is zeros.
    Mean and deviation are parameters that are not trained.

    Values are those of `NoiseAugmented`, and may come with the standard normal noise:
    ``image={"value": vectors, "level": 0.2, "noise": noise}``.

    Attributes:
      part: a `PlainVector`.
      noise, process, max_level, level, label: as in `NoiseAugmented`.
    """

    def __post_init__(self):
        if not isinstance(getattr(self.part, "size", None), int):
            raise UserError(
                f"part={type(self.part).__name__}: expected a condition of vectors, got another one. "
                "Fix: use PlainVector"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, values: dict[str, Array], drop: Bool[Array, "batch"]) -> Embeddings:
        """Embed values as `draw` returns them."""
        shape = (1, self._size)
        mean, std = (
            jax.lax.stop_gradient(self.param(name, init, shape))
            for name, init in (("mean", nn.initializers.zeros), ("std", nn.initializers.ones))
        )
        clean = (values["value"] - mean) / std
        alpha, sigma = self.process.signal(values["level"])
        noisy = expand(alpha, clean) * clean + expand(sigma, clean) * values[NOISE]
        level = self.noise(self.label(self.process, values["level"])).vector
        vector = jnp.concatenate([noisy * std + mean, level], axis=-1)
        return Embeddings(vector=nulls.replace_dropped(self, self.null, vector, drop, nn.initializers.zeros))

    @nn.nowrap
    def draw(self, values: Values, keys: Keys, train: bool) -> dict[str, Array]:
        """The values with their level and their noise, each drawn unless it is given."""
        if not isinstance(values, Mapping):
            values = {"value": values, "level": jnp.full(keys.shape, self.level)}
        split = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
        key_level, key_noise = split[:, 0], split[:, 1]
        level, noise = values["level"], values.get(NOISE)
        if train:
            level = jax.vmap(lambda key: jax.random.uniform(key, maxval=self.max_level))(key_level)
        if noise is None or noise.shape[-1] == 0:
            noise = jax.vmap(lambda key: jax.random.normal(key, (self._size,)))(key_noise)
        return {"value": values["value"], "level": level, NOISE: noise}

    @nn.nowrap
    def encoded(self, values: Values, encoder: ImageEncoder, keys: Keys) -> Values:
        return values

    @nn.nowrap
    def read(self, value: object, name: str = "value") -> dict[str, np.ndarray]:
        """Values with their level and their noise; noise that is to be drawn is an empty array."""
        given = dict(value) if isinstance(value, Mapping) else {"value": value}
        noise = np.asarray(given.pop(NOISE, np.zeros(0)), np.float32)
        return super().read({"level": self.level, **given}, name) | {NOISE: noise}

    @nn.nowrap
    def with_noise(self, value: object, noise: np.ndarray) -> Any:
        return {**(value if isinstance(value, Mapping) else {"value": value}), NOISE: noise}

    @nn.nowrap
    def example(self, batch: int, data_shape: Shape | None = None) -> dict[str, Array]:
        return super().example(batch, data_shape) | {NOISE: jnp.zeros((batch, self._size))}

    @nn.nowrap
    def stored_example(self, batch: int, data_shape: Shape | None = None) -> dict[str, Array]:
        return super().stored_example(batch, data_shape) | {NOISE: jnp.zeros((batch, self._size))}

    @nn.nowrap
    def check(self, values: Mapping[str, Any], name: str = "value") -> None:
        """As `NoiseAugmented`; also where the noise is not that of a vector."""
        super().check(values, name)
        noise = np.asarray(values.get(NOISE, np.zeros((1, 0))))
        if noise.shape[1:] not in ((0,), (self._size,)) or not np.all(np.isfinite(noise)):
            got = f"{noise.dtype}{list(noise.shape)}"
            raise UserError(
                f"{name}.noise={got}: expected finite floats [n, {self._size}], got {got}. Fix: give such an array"
            )

    @property
    def _size(self) -> int:
        part: Any = self.part
        return part.size
