"""Noise-conditioning augmentation: noise on a condition in training, so that the network tolerates flaws in it."""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning.condition import Condition, ImageEncoder, Shape, Values
from jaxdiff.conditioning.nulls import Null
from jaxdiff.embeddings import Embeddings, merge
from jaxdiff.errors import UserError, expect
from jaxdiff.process.gaussian import Process, expand
from jaxdiff.process.labels import NoiseLabel, Time
from jaxdiff.typing import Array, Bool, Keys

TIME = Time()
PAIR = ("value", "level")


class NoiseAugmented(Condition):
    """Noise-conditioning augmentation of another condition (Ho et al. 2022, "Cascaded Diffusion Models", section 4.2;
    Saharia et al. 2022, "Imagen", section 2.3).

    The values are diffused to a level, and the level is embedded as well. In training it is uniform in
    [0, max_level], drawn for each example. In sampling it is `level`, or the one that comes with the value:
    ``low=images`` or ``low={"value": images, "level": 0.2}``. A dropped condition shows no level.

    Attributes:
      part: the condition to augment. Its values are floats (or bytes, for images), such as an `ImageCondition`.
      noise: module from noise labels [batch] to a vector, such as a `NoiseLevel` as wide as the network's.
      process: how values become noise; the level is its time, from 0 to 1.
      max_level: the highest level in training.
      level: the level in sampling, unless one is given.
      label: the noise label of a level, which is the input of `noise`.
    """

    part: Condition
    noise: nn.Module
    process: Process
    max_level: float = 1.0
    level: float = 0.0
    label: NoiseLabel = TIME

    def __post_init__(self):
        expect(0 < self.max_level <= 1, "max_level", self.max_level, "a time in (0, 1]", "try 1.0")
        expect(
            0 <= self.level <= self.max_level,
            "level",
            self.level,
            f"a level of training, from 0 to max_level={self.max_level}",
            "choose one of these",
        )
        super().__post_init__()

    def __call__(self, values: dict[str, Array], drop: Bool[Array, "batch"]) -> Embeddings:
        """Embed values that `draw` has diffused, and their level."""
        vector = self.noise(self.label(self.process, values["level"])).vector
        if self.null != "none":
            vector = jnp.where(drop[:, None], 0.0, vector)
        return merge([self.part(values["value"], drop), Embeddings(vector=vector)])

    @nn.nowrap
    def draw(self, values: Values, keys: Keys, train: bool) -> dict[str, Array]:
        """The values diffused to a level: drawn for each example in training, else the one given, or `level`."""
        if not isinstance(values, Mapping):
            values = {"value": values, "level": jnp.full(keys.shape, self.level)}
        split = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        key_level, key_noise, key_part = (split[:, i] for i in range(3))
        level = values["level"]
        if train:
            level = jax.vmap(lambda key: jax.random.uniform(key, maxval=self.max_level))(key_level)
        clean = self.part.draw(values["value"], key_part, train)
        noise = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:], clean.dtype))(key_noise)
        alpha, sigma = self.process.signal(level)
        # As `gaussian.diffuse`, for values of any rank.
        return {"value": expand(alpha, clean) * clean + expand(sigma, clean) * noise, "level": level}

    @nn.nowrap
    def encoded(self, values: Values, encoder: ImageEncoder, keys: Keys) -> dict[str, Array]:
        """The noisy values encoded as those of the part."""
        return {**values, "value": self.part.encoded(values["value"], encoder, keys)}

    @nn.nowrap
    def read(self, value: object, name: str = "value") -> dict[str, np.ndarray]:
        """Values with their level: a value, a value with a level, or a list of either."""
        given = self._with_level(value, name)
        return {
            "value": self.part.read(given["value"], name),
            "level": np.asarray(given["level"], np.float32),
        }

    @nn.nowrap
    def unaugmented(self, values: Values) -> Values:
        return self.part.unaugmented(values["value"] if isinstance(values, Mapping) else values)

    @nn.nowrap
    def with_level(self, value: object, level: float) -> Any:
        """A user's value, or each one of a list, at a level."""
        if isinstance(value, Mapping):
            return {**value, "level": level}
        if isinstance(value, list | tuple) and any(
            item is None or isinstance(item, Mapping | np.ndarray) for item in value
        ):
            return [None if item is None else self.with_level(item, level) for item in value]
        return {"value": value, "level": level}

    @nn.nowrap
    def example(self, batch: int, data_shape: Shape | None = None) -> dict[str, Array]:
        return {"value": self.part.example(batch, data_shape), "level": jnp.zeros(batch)}

    @nn.nowrap
    def stored_example(self, batch: int, data_shape: Shape | None = None) -> dict[str, Array]:
        return {"value": self.part.stored_example(batch, data_shape), "level": jnp.zeros(batch)}

    @nn.nowrap
    def for_images(self, shape: Shape, data_shape: Shape) -> "NoiseAugmented":
        part = self.part.for_images(shape, data_shape)
        return self if part is self.part else self.clone(part=part)

    @nn.nowrap
    def image_shape(self, data_shape: Shape) -> tuple[int, int, int] | None:
        return self.part.image_shape(data_shape)

    @nn.nowrap
    def check(self, values: Mapping[str, Any], name: str = "value") -> None:
        """Raise `UserError` where the values do not fit the part, or a level is outside the range of training."""
        self.part.check(values["value"], name)
        level = np.asarray(values["level"])
        fits = bool(np.all((level >= 0) & (level <= self.max_level)))
        expected = f"levels of training, from 0 to {self.max_level}"
        expect(fits, f"{name}.level", level.tolist(), expected, "choose one of these")

    @nn.nowrap
    def parse(self, text: str, name: str) -> list[Any]:
        return self.part.parse(text, name)

    @nn.nowrap
    def from_json(self, value: Any, name: str, folder: pathlib.Path) -> Any:
        """A value of the part, or ``{"value": VALUE, "level": LEVEL}``."""
        if isinstance(value, Mapping) and "value" in value:
            return {**value, "value": self.part.from_json(value["value"], name, folder)}
        return self.part.from_json(value, name, folder)

    @nn.nowrap
    def to_arrays(self, value: Any, name: str, n: int) -> dict[str, np.ndarray]:
        """The arrays of the part, and NAME_level if a level is given."""
        if not _has_level(value):
            return self.part.to_arrays(value, name, n)
        given = self._with_level(value, name)
        return {**self.part.to_arrays(given["value"], name, n), f"{name}_level": np.asarray(given["level"])}

    @nn.nowrap
    def describe(self, values: Values) -> list[str] | None:
        return self.part.describe(self.unaugmented(values))

    @nn.nowrap
    def images(self, values: Values) -> np.ndarray | None:
        return self.part.images(self.unaugmented(values))

    @property
    def drop_rate(self) -> float:
        return self.part.drop_rate

    @property
    def null(self) -> Null:
        return self.part.null

    @nn.nowrap
    def _with_level(self, value: object, name: str) -> dict[str, Any]:
        """The value and the level of one input; lists of both, of a list in which some have a level."""
        if isinstance(value, list | tuple) and _has_level(value):
            pairs = [self._with_level(item, name) for item in value]
            return {key: [pair[key] for pair in pairs] for key in PAIR}
        pair = dict(value) if isinstance(value, Mapping) else {"value": value, "level": self.level}
        if set(pair) != set(PAIR):
            raise UserError(
                f"{name}={sorted(pair)}: expected a value and its level, got {', '.join(sorted(pair))}. "
                'Fix: give {"value": VALUE, "level": LEVEL}'
            )
        return pair


def _has_level(value: object) -> bool:
    """Whether a user's value, or one of a list, comes with a level."""
    items = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(item, Mapping) for item in items)
