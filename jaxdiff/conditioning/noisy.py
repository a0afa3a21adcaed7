"""Conditions that are made noisy on purpose, so that a network learns to live with the faults of their source."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning.nulls import Null
from jaxdiff.embeddings import Embeddings, merge
from jaxdiff.errors import UserError, require
from jaxdiff.process.gaussian import Process, expand
from jaxdiff.process.labels import NoiseLabel, Time
from jaxdiff.typing import Array, Bool, Keys

TIME = Time()


class NoiseAugmented(nn.Module):
    """Noise-conditioning augmentation of another condition (Ho et al. 2022, "Cascaded Diffusion Models", section 4.2;
    Saharia et al. 2022, "Imagen", section 2.3).

    Its values are diffused to a level that the network is told. In training the level is uniform in [0, max_level],
    drawn for each example; in sampling it is `level`, or the one that comes with the values: ``low=images`` or
    ``low={"value": images, "level": 0.2}``. The level of a dropped condition is not told.

    Attributes:
      part: the condition, whose values are floats (or bytes, for images), such as an `ImageCondition`.
      noise: module from noise labels [batch] to a vector, such as a `NoiseLevel` as wide as the network's.
      process: how values become noise; the level is its time, from 0 to 1.
      max_level: the highest level in training.
      level: the level in sampling, unless one is given.
      label: how the noise module is told the level.
    """

    part: nn.Module
    noise: nn.Module
    process: Process
    max_level: float = 1.0
    level: float = 0.0
    label: NoiseLabel = TIME

    def __post_init__(self):
        require(0 < self.max_level <= 1, "max_level", self.max_level, "it is a time in (0, 1]", "try 1.0")
        require(0 <= self.level <= self.max_level, "level", self.level,
                f"training sees levels up to max_level={self.max_level}", "choose one of these")  # fmt: skip
        super().__post_init__()

    def __call__(self, values: dict[str, Array], drop: Bool[Array, "batch"]) -> Embeddings:
        """Embed values that `draw` has diffused, and their level."""
        told = self.noise(self.label(self.process, values["level"])).vector
        if self.null != "none":
            told = jnp.where(drop[:, None], 0.0, told)
        return merge([self.part(values["value"], drop), Embeddings(vector=told)])

    @nn.nowrap
    def draw(self, values: Any, keys: Keys, train: bool) -> dict[str, Array]:
        """The values at a level: drawn for each example in training, else that of the values, or `level`."""
        if not isinstance(values, Mapping):
            values = {"value": values, "level": jnp.full(keys.shape, self.level)}
        split = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        key_level, key_noise, key_part = (split[:, i] for i in range(3))
        level = values["level"]
        if train:
            level = jax.vmap(lambda key: jax.random.uniform(key, maxval=self.max_level))(key_level)
        clean = values["value"]
        if hasattr(self.part, "draw"):
            clean = self.part.draw(clean, key_part, train)
        noise = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:], clean.dtype))(key_noise)
        alpha, sigma = self.process.signal(level)
        # As `gaussian.diffuse`, and of values of any shape.
        return {"value": expand(alpha, clean) * clean + expand(sigma, clean) * noise, "level": level}

    @nn.nowrap
    def read(self, value: object) -> dict[str, np.ndarray]:
        """Values with their level."""
        given = dict(value) if isinstance(value, Mapping) else {"value": value, "level": self.level}
        if set(given) != {"value", "level"}:
            fix = "give them by these names"
            raise UserError(f"{sorted(given)}: a value and its level are expected. Fix: {fix}")
        inner = getattr(self.part, "read", np.asarray)(given["value"])
        return {"value": inner, "level": np.asarray(given["level"], np.float32)}

    @nn.nowrap
    def example(self, batch: int, image_shape: tuple[int, int, int] | None = None) -> dict[str, Array]:
        return {"value": self.part.example(batch, image_shape), "level": jnp.zeros(batch)}

    @nn.nowrap
    def check(self, values: Mapping[str, Any], name: str = "value") -> None:
        """Raise `UserError` where the values are not what the part expects, or a level is none of training's."""
        self.part.check(values["value"], name)
        level = np.asarray(values["level"])
        fits = bool(np.all((level >= 0) & (level <= self.max_level)))
        why = f"training sees levels from 0 to {self.max_level}"
        require(fits, f"{name}.level", level.tolist(), why, "choose one of these")

    @property
    def drop_rate(self) -> float:
        return self.part.drop_rate

    @property
    def null(self) -> Null:
        return self.part.null
