"""The conditioner: all conditions of a model and its noise level, embedded together."""

import inspect
import zlib
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from jaxdiff.conditioning.condition import Condition, ImageEncoder, Shape, Values
from jaxdiff.data.sources import LABEL
from jaxdiff.embeddings import Embeddings, VectorInputs, merge
from jaxdiff.errors import UserError, expect
from jaxdiff.typing import Array, Drops, Fields, Float, Key, Keys

ENCODED = 2**31 - 1
"""Folded into a condition's key for `Condition.encoded`, apart from the draws of `Condition.draw`."""

SPAN = "span"
"""The name of `Conditioner.span` beside those of conditions, see `Conditioner.without`."""


def parameters_of(name: str) -> str:
    """The name of a condition's parameters within a `Conditioner`, as in checkpoints."""
    return f"parts_{name}"


class Conditioner(nn.Module):
    """Conditioner: embeds the noise level and the condition fields of a batch.

    The vectors of the noise level and of the conditions are added. The vectors of `concatenated` conditions are first
    concatenated and mapped by one module, as the pooled text and the sizes of SDXL (Podell et al. 2023)::

        vector = noise(noise_label) + mapping(concat(v_1, ..., v_k)) + v_{k+1} + ...

    A flow map also reads where its step ends, as ``span(noise_label - noise_label of the end)`` (Geng et al. 2025,
    "Mean flows", who embed t and t - r). A span of 0 is the plain denoiser.

    Attributes:
      noise: module from noise labels [batch] to `Embeddings`. It takes `Embeddings.features` as a second argument if
        a condition gives some.
      conditions: the conditions by name; empty for an unconditional model. Their order has no meaning.
      concatenated: names of the conditions whose vectors are concatenated, in this order.
      mapping: module from the concatenated vectors [batch, channels] to a vector.
      span: module from differences of noise labels [batch] to `Embeddings`, such as `NoiseLevel`; None for a model that
        reads one time.
    """

    preserve_adopted_names: ClassVar[bool] = True

    noise: nn.Module
    conditions: Mapping[str, Condition] = FrozenDict()
    concatenated: tuple[str, ...] = ()
    mapping: nn.Module | None = None
    span: nn.Module | None = None

    def __post_init__(self):
        for name, condition in self.conditions.items():
            if not isinstance(condition, Condition):
                raise UserError(
                    f"conditions.{name}: expected a Condition, got {type(condition).__name__}. "
                    "Fix: derive its class from jaxdiff.conditioning.condition.Condition"
                )
        one = self.span is None or SPAN not in self.conditions
        expect(one, f"conditions.{SPAN}", SPAN, "another name beside `span`", "rename the condition")
        for name in self.concatenated:
            fix = f"choose from {', '.join(self.conditions) or 'no conditions'}"
            expect(name in self.conditions, "concatenated", name, "names of conditions", fix)
        both = bool(self.concatenated) == (self.mapping is not None)
        expect(both, "mapping", self.mapping, "a module together with concatenated", "give both, or neither")
        # Sorted: configs come back from JSON in another order. Frozen: modules are static arguments of jit.
        self.conditions = FrozenDict(
            {name: self.conditions[name].clone(name=parameters_of(name)) for name in sorted(self.conditions)}
        )
        super().__post_init__()

    def __call__(self, noise_label: Float[Array, "batch"], fields: Fields, drop: Drops) -> Embeddings:
        """Embed the noise level and all conditions.

        Args:
          noise_label: the noise level as the parameterization encodes it, [batch].
          fields: values of every condition, each with a leading batch axis.
          drop: for every condition, which examples see its null.
        """
        return self.join(noise_label, self.encode(fields, drop))

    def encode(self, fields: Fields, drop: Drops) -> dict[str, Embeddings]:
        """Embed each condition alone: the part that is constant while an image is sampled."""
        self._match("fields", fields)
        self._match("drop", drop)
        return {name: condition(fields[name], drop[name]) for name, condition in self.conditions.items()}

    def precompute(self, fields: Fields) -> dict[str, Values]:
        """What the encoders of conditions make of their values, see `Condition.precompute`."""
        return {name: self.conditions[name].precompute(values) for name, values in fields.items()}

    def join(
        self,
        noise_label: Float[Array, "batch"],
        encoded: Mapping[str, Embeddings],
        span: Float[Array, "batch"] | None = None,
    ) -> Embeddings:
        """Embed the noise level, and merge it with the conditions as `encode` returns them.

        Args:
          noise_label: the noise level as the parameterization encodes it.
          encoded: the embedded conditions.
          span: `noise_label` minus that of the end of a step; None for 0, and for models that read one time.

        Raises:
          UserError: a span is given to a model that reads one time.
        """
        self._match("encoded", encoded)
        conditions = [encoded[name] for name in self.conditions]
        features = merge([Embeddings(features=each.features) for each in conditions]).features
        parts = [self._embed_noise(noise_label, features), *self._embed_span(noise_label, span)]
        concatenated = self._concatenated(encoded)
        if self.mapping is not None:
            parts.append(Embeddings(vector=self.mapping(concatenated)))
        for name in self.conditions:
            used = {"vector": None} if name in self.concatenated else {}
            parts.append(encoded[name].replace(features=None, **used))
        return merge(parts).replace(vector_inputs=VectorInputs(noise_label, concatenated))

    def _embed_noise(
        self, noise_label: Float[Array, "batch"], features: Float[Array, "batch channels"] | None
    ) -> Embeddings:
        arguments = [noise_label] if features is None else [noise_label, features]
        try:
            inspect.signature(self.noise).bind(*arguments)
        except TypeError:
            raise UserError(
                f"before_mapping=True: expected a noise module that takes features, got {type(self.noise).__name__}. "
                "Fix: use before_mapping=False, or NoiseLevel"
            ) from None
        return self.noise(*arguments)

    def _embed_span(
        self, noise_label: Float[Array, "batch"], span: Float[Array, "batch"] | None
    ) -> list[Embeddings]:
        if self.span is not None:
            return [self.span(jnp.zeros_like(noise_label) if span is None else span)]
        expect(
            span is None, "conditioner.span", None, "a module that reads the end of a step, as flow maps do",
            "give span=NoiseLevel(width) and train with MeanFlow, or use another sampler than FlowMap",
        )  # fmt: skip
        return []

    @nn.nowrap
    def _concatenated(self, encoded: Mapping[str, Embeddings]) -> Float[Array, "batch channels"] | None:
        vectors = []
        for name in self.concatenated:
            vector = encoded[name].vector
            if vector is None:
                raise UserError(
                    f"concatenated={name!r}: expected a condition with a vector, got none. Fix: leave {name} out"
                )
            vectors.append(vector)
        return jnp.concatenate(vectors, axis=-1) if vectors else None

    @nn.nowrap
    def draw(self, batch: Fields, keys: Keys, train: bool, encoder: ImageEncoder | None = None) -> Fields:
        """Select each condition's values from a batch, which may hold more, and apply its random augmentation.

        A missing field is its condition's default. In sampling, `keys` are the keys of the images. With an encoder
        the values are also encoded, see `Condition.encoded`, and are the inputs of `encode`.
        """
        fields = {}
        for name, condition in self.conditions.items():
            values = self._default(name, keys.shape[0]) if name not in batch else batch[name]
            # By name: the draws of one condition do not depend on the presence of others.
            own = jax.vmap(jax.random.fold_in, (0, None))(keys, np.uint32(zlib.crc32(name.encode())))
            fields[name] = condition.draw(values, own, train)
            if encoder is not None:
                own = jax.vmap(jax.random.fold_in, (0, None))(own, ENCODED)
                fields[name] = condition.encoded(fields[name], encoder, own)
        return fields

    @nn.nowrap
    def read(self, name: str, value: object) -> Values:
        """Arrays from a user's value for a condition; None stands for its default.

        Raises:
          UserError: the value is no array, such as lists of different lengths.
        """
        condition = self.conditions[name]
        try:
            return condition.read(condition.default if value is None else value, name)
        except UserError:
            raise
        except ValueError as error:
            got = str(error).partition(".")[0]
            raise UserError(
                f"{name}=...: expected values of one shape, got an error: {got}. Fix: give lists of equal lengths"
            ) from None

    @nn.nowrap
    def has_default(self, name: str) -> bool:
        """Whether this condition may be left out."""
        return self.conditions[name].default is not None

    @nn.nowrap
    def has_null(self, name: str) -> bool:
        """Whether this condition can be dropped."""
        return self.conditions[name].null != "none"

    @nn.nowrap
    def with_flag(self, flag: str) -> tuple[str, ...]:
        """Names of the conditions of a kind, by their `Condition.flag`: "label", "text" or "known"."""
        return tuple(name for name, condition in self.conditions.items() if condition.flag == flag)

    @nn.nowrap
    def only(self, flag: str) -> str | None:
        """Name of the one condition of a kind; None if there is none, or more than one."""
        names = self.with_flag(flag)
        return names[0] if len(names) == 1 else None

    @nn.nowrap
    def with_class_names(self, names: tuple[str, ...]) -> "Conditioner":
        """This conditioner with the names of a run's class table in the condition ``label``, if there is one."""
        if LABEL not in self.conditions:
            return self
        return self.clone(
            conditions={**self.conditions, LABEL: self.conditions[LABEL].with_class_names(names)}
        )

    @nn.nowrap
    def for_images(self, shape: Shape, data_shape: Shape) -> "Conditioner":
        """This conditioner for images of this stored shape, see `Condition.for_images`."""
        return self._with(
            {name: each.for_images(shape, data_shape) for name, each in self.conditions.items()}
        )

    @nn.nowrap
    def without(self, names: Collection[str]) -> "Conditioner":
        """This conditioner without the conditions of these names; without `span` if `SPAN` is among them."""
        return self.clone(
            conditions={name: self.conditions[name] for name in self.conditions if name not in names},
            span=None if SPAN in names else self.span,
        )

    @nn.nowrap
    def for_shapes(self) -> "Conditioner":
        """This conditioner where only shapes are wanted, see `Condition.for_shapes`."""
        return self._with({name: each.for_shapes() for name, each in self.conditions.items()})

    @nn.nowrap
    def for_negative(self) -> "Conditioner":
        """This conditioner for negative conditions, see `Condition.for_negative`."""
        return self._with({name: each.for_negative() for name, each in self.conditions.items()})

    @nn.nowrap
    def _with(self, conditions: Mapping[str, Condition]) -> "Conditioner":
        changed = any(conditions[name] is not each for name, each in self.conditions.items())
        return self.clone(conditions=conditions) if changed else self

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes of the condition ``label``; empty without names."""
        return self.conditions[LABEL].class_names if LABEL in self.conditions else ()

    @nn.nowrap
    def draw_drops(self, key: Key[Array, ""], batch: int) -> Drops:
        """Drop masks of training: each condition of each example is dropped independently."""
        keys = jax.random.split(key, max(len(self.conditions), 1))
        return {
            name: jax.random.bernoulli(key, condition.drop_rate, (batch,))
            for key, (name, condition) in zip(keys, self.conditions.items(), strict=False)
        }

    @nn.nowrap
    def none_dropped(self, batch: int) -> Drops:
        """Drop masks of the conditional model."""
        return {name: jnp.zeros((batch,), bool) for name in self.conditions}

    @nn.nowrap
    def example(self, batch: int, data_shape: Shape | None = None) -> Fields:
        """Dummy values of the right shapes and types; conditions that are images need `data_shape`."""
        return {name: condition.example(batch, data_shape) for name, condition in self.conditions.items()}

    @nn.nowrap
    def stored_example(self, batch: int, data_shape: Shape | None = None) -> Fields:
        """Dummy values as batches and users give them, see `Condition.stored_example`."""
        return {name: each.stored_example(batch, data_shape) for name, each in self.conditions.items()}

    @nn.nowrap
    def check(self, fields: Fields) -> None:
        """Raise `UserError` where a value does not fit its condition. Not for traced values."""
        for name, values in fields.items():
            self._check_known(name)
            self.conditions[name].check(values, name)

    @nn.nowrap
    def _default(self, name: str, batch: int) -> Values:
        if not self.has_default(name):
            raise UserError(
                f"{name}=: expected a field for this condition of the model, got none in the batch. Fix: give {name}"
            )

        def repeat(leaf: Any) -> Array:
            return jnp.broadcast_to(leaf, (batch, *np.shape(leaf)))

        return jax.tree.map(repeat, self.read(name, None))

    @nn.nowrap
    def _match(self, kind: str, given: Mapping) -> None:
        for name in given:
            self._check_known(name)
        for name in self.conditions:
            if name not in given:
                raise UserError(
                    f"{name}=: expected a value for this condition of the model, got none in {kind}. Fix: give {name}"
                )

    @nn.nowrap
    def _check_known(self, name: str) -> None:
        fix = f"choose from {', '.join(self.conditions) or 'no conditions'}"
        expect(name in self.conditions, "conditions", name, "a condition of the model", fix)
