"""All conditions of a model under their names, and the noise level, as one module."""

import inspect
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from jaxdiff.embeddings import Embeddings, merge
from jaxdiff.errors import UserError
from jaxdiff.typing import Array, Drops, Fields, Float, Key, Keys


def parameters_of(name: str) -> str:
    """The name of a condition's parameters in a `Conditioner`, as checkpoints have it."""
    return f"parts_{name}"


class Conditioner(nn.Module):
    """Turns the fields of a batch into `Embeddings`.

    A part is a module ``(values, drop[batch]) -> Embeddings`` that shows its own null where `drop` is True. It has a
    `drop_rate` and, off the device, ``example(batch, image_shape)``, dummy values for images of this shape, and
    ``check(values, name)``, which raises `UserError`. In which slot it acts is its own business. It may have besides:

    - `default`, what a user could have given, for those who give nothing;
    - `null`, which is "none" if there is no null: such a part does not look at `drop`, and guidance always shows it;
    - ``read(value)``: arrays out of what a user gives, of one image or of several;
    - ``draw(values, keys, train)``: its values with all that is random about them, from a key for each example;
    - ``known(values)``: images and a mask, True where pixels are to be made; a `Generator` keeps the others.

    Attributes:
      noise: module from noise labels [batch] to `Embeddings`, which takes `Embeddings.features` as a second argument
        if there are conditions that give them.
      conditions: the conditions by name; none for an unconditional model. Their order has no meaning.
    """

    preserve_adopted_names: ClassVar[bool] = True

    noise: nn.Module
    conditions: Mapping[str, nn.Module] = FrozenDict()

    def __post_init__(self):
        # Sorted: configs come back from JSON in another order. Frozen: modules are static arguments of jit.
        self.conditions = FrozenDict(
            {name: self.conditions[name].clone(name=parameters_of(name)) for name in sorted(self.conditions)}
        )
        super().__post_init__()

    def __call__(self, noise_label: Float[Array, "batch"], fields: Fields, drop: Drops) -> Embeddings:
        """Embed the noise level and all conditions.

        Args:
          noise_label: what the parameterization makes of the time, [batch].
          fields: values of every condition, each with a leading batch axis.
          drop: for every condition, which examples see its null.
        """
        return self.join(noise_label, self.encode(fields, drop))

    def encode(self, fields: Fields, drop: Drops) -> dict[str, Embeddings]:
        """Embed each condition alone: what does not change while an image is sampled."""
        self._match("fields", fields)
        self._match("drop", drop)
        return {name: part(fields[name], drop[name]) for name, part in self.conditions.items()}

    def join(self, noise_label: Float[Array, "batch"], encoded: Mapping[str, Embeddings]) -> Embeddings:
        """Embed the noise level, and join what `encode` has made of the conditions to it."""
        self._match("encoded", encoded)
        given = [encoded[name] for name in self.conditions]
        features = merge([Embeddings(features=embeddings.features) for embeddings in given]).features
        told = [noise_label] if features is None else [noise_label, features]
        try:
            inspect.signature(self.noise).bind(*told)
        except TypeError:
            raise UserError(
                f"before_mapping=True: {type(self.noise).__name__} takes no features of conditions. "
                "Fix: use before_mapping=False, or NoiseLevel"
            ) from None
        noise = self.noise(*told)
        return merge([noise, *(embeddings.replace(features=None) for embeddings in given)])

    @nn.nowrap
    def draw(self, batch: Fields, keys: Keys, train: bool) -> Fields:
        """The values of every condition, out of a batch that may hold more, with all that is random about them.

        A missing field is its part's default. In training all is drawn as training wants it, and for the whole batch;
        in sampling `keys` are those of the images.
        """
        fields = {}
        for name, part in self.conditions.items():
            values = self._default(name, keys.shape[0]) if name not in batch else batch[name]
            if hasattr(part, "draw"):
                # By name: what one part draws does not depend on which others there are.
                own = jax.vmap(jax.random.fold_in, (0, None))(keys, np.uint32(zlib.crc32(name.encode())))
                values = part.draw(values, own, train)
            fields[name] = values
        return fields

    @nn.nowrap
    def read(self, name: str, value: object) -> Any:
        """Arrays out of what a user gives for a condition; None stands for its default."""
        part = self.conditions[name]
        value = part.default if value is None else value
        return part.read(value) if hasattr(part, "read") else np.asarray(value)

    @nn.nowrap
    def has_default(self, name: str) -> bool:
        """Whether this condition need not be given."""
        return getattr(self.conditions[name], "default", None) is not None

    @nn.nowrap
    def has_null(self, name: str) -> bool:
        """Whether this condition can be dropped."""
        return getattr(self.conditions[name], "null", "learned") != "none"

    @nn.nowrap
    def draw_drops(self, key: Key[Array, ""], batch: int) -> Drops:
        """For training: each condition of each example is dropped on its own."""
        keys = jax.random.split(key, max(len(self.conditions), 1))
        return {
            name: jax.random.bernoulli(key, part.drop_rate, (batch,))
            for key, (name, part) in zip(keys, self.conditions.items(), strict=False)
        }

    @nn.nowrap
    def all_dropped(self, batch: int) -> Drops:
        """The unconditional model."""
        return {name: jnp.ones((batch,), bool) for name in self.conditions}

    @nn.nowrap
    def none_dropped(self, batch: int) -> Drops:
        """The conditional model."""
        return {name: jnp.zeros((batch,), bool) for name in self.conditions}

    @nn.nowrap
    def example(self, batch: int, image_shape: tuple[int, int, int] | None = None) -> Fields:
        """Dummy values of the right shapes and types; conditions that are images need `image_shape`."""
        return {name: part.example(batch, image_shape) for name, part in self.conditions.items()}

    @nn.nowrap
    def check(self, fields: Fields) -> None:
        """Raise `UserError` where a value is not what its condition expects. Not for traced values."""
        for name, values in fields.items():
            self._known(name)
            self.conditions[name].check(values, name)

    @nn.nowrap
    def _default(self, name: str, batch: int) -> Any:
        if not self.has_default(name):
            raise UserError(f"{name}=: the model has this condition, the batch lacks it. Fix: give {name}")
        spread = lambda leaf: jnp.broadcast_to(leaf, (batch, *np.shape(leaf)))  # noqa: E731
        return jax.tree.map(spread, self.read(name, None))

    @nn.nowrap
    def _match(self, what: str, given: Mapping) -> None:
        for name in given:
            self._known(name)
        for name in self.conditions:
            if name not in given:
                raise UserError(f"{name}=: the model has this condition, {what} lacks it. Fix: give {name}")

    @nn.nowrap
    def _known(self, name: str) -> None:
        if name not in self.conditions:
            has = ", ".join(self.conditions) or "no conditions"
            raise UserError(f"{name}=: the model has no such condition. Fix: leave it out; it has {has}")
