"""All conditions of a model under their names, and the noise level, as one module."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from jaxdiff.embeddings import Embeddings, merge
from jaxdiff.errors import UserError
from jaxdiff.typing import Array, Drops, Fields, Float, Key


class Conditioner(nn.Module):
    """Turns the fields of a batch into `Embeddings`.

    A part is a module ``(values, drop[batch]) -> Embeddings`` that shows its own learned null where `drop` is
    True. It has a `drop_rate` and, off the device, ``example(batch)``, dummy values, and ``check(values, name)``,
    which raises `UserError`. In which slot it acts is its own business.

    Attributes:
      noise: module from noise labels [batch] to `Embeddings`.
      parts: the conditions by name; none for an unconditional model. Their order has no meaning.
    """

    noise: nn.Module
    parts: Mapping[str, nn.Module] = FrozenDict()

    def __post_init__(self):
        # Sorted: configs come back from JSON in another order. Frozen: modules are static arguments of jit.
        self.parts = FrozenDict({name: self.parts[name] for name in sorted(self.parts)})
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
        return {name: part(fields[name], drop[name]) for name, part in self.parts.items()}

    def join(self, noise_label: Float[Array, "batch"], encoded: Mapping[str, Embeddings]) -> Embeddings:
        """Embed the noise level, and join what `encode` has made of the conditions to it."""
        self._match("encoded", encoded)
        return merge([self.noise(noise_label), *(encoded[name] for name in self.parts)])

    @nn.nowrap
    def draw_drops(self, key: Key[Array, ""], batch: int) -> Drops:
        """For training: each condition of each example is dropped on its own."""
        keys = jax.random.split(key, max(len(self.parts), 1))
        return {
            name: jax.random.bernoulli(key, part.drop_rate, (batch,))
            for key, (name, part) in zip(keys, self.parts.items(), strict=False)
        }

    @nn.nowrap
    def all_dropped(self, batch: int) -> Drops:
        """The unconditional model."""
        return {name: jnp.ones((batch,), bool) for name in self.parts}

    @nn.nowrap
    def none_dropped(self, batch: int) -> Drops:
        """The conditional model."""
        return {name: jnp.zeros((batch,), bool) for name in self.parts}

    @nn.nowrap
    def example(self, batch: int) -> Fields:
        """Dummy values of the right shapes and types."""
        return {name: part.example(batch) for name, part in self.parts.items()}

    @nn.nowrap
    def check(self, fields: Fields) -> None:
        """Raise `UserError` where a value is not what its condition expects. Not for traced values."""
        for name, values in fields.items():
            self._known(name)
            self.parts[name].check(values, name)

    @nn.nowrap
    def _match(self, what: str, given: Mapping) -> None:
        for name in given:
            self._known(name)
        for name in self.parts:
            if name not in given:
                raise UserError(f"{name}=: the model has this condition, {what} lacks it. Fix: give {name}")

    @nn.nowrap
    def _known(self, name: str) -> None:
        if name not in self.parts:
            has = ", ".join(self.parts) or "no conditions"
            raise UserError(f"{name}=: the model has no such condition. Fix: leave it out; it has {has}")
