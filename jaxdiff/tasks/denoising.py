"""Denoising: the task of every diffusion model, in pixels, latents or embeddings, with any conditions."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict

from jaxdiff.codecs.encoder import Encoder
from jaxdiff.codecs.pixels import Pixels
from jaxdiff.codecs.protocol import Codec, KnownShapes, Shape
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.data.sources import LABEL, LOSS_WEIGHT
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError, expect, one_of
from jaxdiff.models.lora import Lora
from jaxdiff.process import gaussian, time_sampling
from jaxdiff.process.per_example import mean_per_example
from jaxdiff.tasks import consistency, pretrained
from jaxdiff.tasks.augmentation import FIELD, Augmentation
from jaxdiff.tasks.masking import LossMask
from jaxdiff.tasks.objectives import LossInputs, Model, Objective, WeightedError
from jaxdiff.tasks.protocols import TaskContext
from jaxdiff.trees import branch_at, check_like, with_dtype
from jaxdiff.typing import Array, Batch, Data, Float, Key, Metrics, Params, Times, Weights


@dataclasses.dataclass(frozen=True)
class DenoisingTask:
    """Predict clean data from noisy data (Ho et al. 2020, algorithm 1, with any target, time sampler and loss).

    Attributes:
      denoiser: network, conditioner, process and parameterization in one module.
      time_sampler: the distribution of training times.
      image_shape: shape of a stored example, (height, width, channels) for images.
      objective: the loss of each example.
      stratified: spread the times of a batch evenly over their distribution (VDM, Kingma et al. 2021, appendix I.1).
      augmentation: random changes of the encoded images. The condition "augment" describes them to the model, so that
        none leaks into samples. Conditions that are images do not move with them.
      codec: from stored examples to diffused data.
      data_field: the field of the batch that holds the stored examples.
      pretrained: networks inside the denoiser that are not trained: path of the module in the tree of parameters, such
        as ``conditioner/parts_text``, to the origin of its parameters.
      lora: low-rank changes of kernels in `pretrained` modules, which are trained; None for no changes.
      mask: the pixels of each image whose error counts; None for all of them.
      param_dtype: the type in which trained parameters with two axes or more are stored, with their average:
        "float32", or "bfloat16", which `training.rounding` updates. Layers compute in their own `dtype` either way.

    The loss of an example is multiplied by its field `LOSS_WEIGHT`, if the data have it.
    """

    denoiser: Denoiser
    time_sampler: time_sampling.TimeSampler
    image_shape: tuple[int, ...]
    objective: Objective = WeightedError()
    stratified: bool = True
    augmentation: Augmentation | None = None
    codec: Codec = Pixels()
    data_field: str = "image"
    pretrained: Mapping[str, Weights] = FrozenDict()
    lora: Lora | None = None
    mask: LossMask | None = None
    param_dtype: str = "float32"

    def __post_init__(self):
        object.__setattr__(
            self, "pretrained", FrozenDict(self.pretrained)
        )  # hashable: tasks are static under jit
        one_of(self, "param_dtype", ("float32", "bfloat16"))
        shape = self.codec.data_shape(tuple(self.image_shape))
        object.__setattr__(self, "denoiser", self.denoiser.for_images(tuple(self.image_shape), shape))
        self.objective.check(self.denoiser, self.time_sampler)
        if self.mask is not None:
            self.mask.check_task(self.objective, self.augmentation, tuple(self.image_shape), shape)
        if self.augmentation is not None:
            size = self.augmentation.size
            expect(
                len(shape) == 3,
                "augmentation",
                self.augmentation,
                "images to augment",
                "use None",
                f"data {shape}",
            )
            condition = self.denoiser.conditioner.conditions.get(FIELD)
            expect(
                isinstance(condition, Continuous) and condition.size == size,
                "augmentation",
                self.augmentation,
                f"a condition {FIELD!r} of {size} numbers",
                f"give the conditioner {FIELD}=Continuous({size}, ...)",
                repr(condition),
            )

    @property
    def data_shape(self) -> Shape:
        """The shape of a diffused example."""
        return self.codec.data_shape(tuple(self.image_shape))

    @property
    def frozen(self) -> Mapping[str, Weights]:
        """Networks that are used and not trained: the codec's, the objective's, and `pretrained` modules."""
        return {**self.codec.frozen, **self.objective.frozen, **self.pretrained}

    def check(self, example: Mapping[str, Any], num_classes: int | None) -> None:
        """Raise `UserError` unless a stored example has the shape, type and conditions that the task needs."""
        shape, fix = tuple(self._stored(example).shape), "use the same shape"
        expect(shape == tuple(self.image_shape), "config.task.image_shape", self.image_shape,
               f"the shape of the examples, {shape}", fix)  # fmt: skip
        consistency.check(self)
        if self.mask is not None:
            self.mask.check_example(example, tuple(self.image_shape))
        self._check_conditions(example, num_classes)

    def check_held_out(self, example: Mapping[str, Any], num_classes: int | None) -> None:
        """`check` for an example of the test data. Where a condition is an image, which sets the size of the samples,
        its height and width may differ from training's."""
        stored, shape = self._stored(example), tuple(self.image_shape)
        conditions = self.denoiser.conditioner.conditions.values()
        any_size = any(condition.image_shape(self.data_shape) is not None for condition in conditions)
        same = (
            stored.ndim == len(shape) and stored.shape[-1] == shape[-1] if any_size else stored.shape == shape
        )
        expect(
            same,
            "config.test_data",
            f"{stored.dtype}{list(stored.shape)}",
            f"examples of training's shape, {shape}{' up to height and width' if any_size else ''}",
            "use test data of this shape",
        )
        self._check_conditions(example, num_classes)

    def check_frozen(self, frozen: Mapping[str, Params]) -> None:
        """Raise `UserError` unless the parameters of frozen networks fit, before anything is compiled."""
        for path, tree in self._pretrained_shapes().items():
            pretrained.check(path, tree, frozen[path])
        for name, tree in self._whole_shapes().items():
            fix = "use weights of a model with the same network and conditions"
            check_like(f"config.task.objective.{name}", tree, frozen[name], fix)
        stored, keys = self.codec.example(1, tuple(self.image_shape)), jax.random.split(jax.random.key(0), 1)
        try:
            jax.eval_shape(
                lambda: self.codec.decode(frozen, self.codec.encode(frozen, jnp.asarray(stored), keys))
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            text = " ".join(str(error).split())[:200]
            raise UserError(
                f"config.task.codec={type(self.codec).__name__}: expected weights that fit the codec and examples "
                f"{tuple(self.image_shape)}, got {type(error).__name__}: {text}. Fix: use other weights"
            ) from error

    def for_shapes(self) -> "DenoisingTask":
        """This task where only shapes are wanted, see `Condition.for_shapes`."""
        return dataclasses.replace(self, denoiser=self.denoiser.for_shapes())

    def for_samples(self) -> "DenoisingTask":
        """This task without the frozen networks of its objective."""
        return dataclasses.replace(self, objective=WeightedError(), mask=None)

    def frozen_shapes(self) -> Mapping[str, Params]:
        """Trees of shapes by the names in `frozen`. Weights are read only for a codec that does not know its own."""
        codec: Any = self.codec
        own = {**self._whole_shapes(), **self._pretrained_shapes()}
        if isinstance(codec, KnownShapes):
            return {**codec.frozen_shapes(), **own}
        read = {name: nn.meta.unbox(origin.read()) for name, origin in codec.frozen.items()}
        return {**jax.eval_shape(lambda: read), **own}

    def stored_example(self, count: int) -> Batch:
        """Placeholder of a batch as it is stored: the examples, their conditions and their masks."""
        shape = tuple(self.image_shape)
        fields = self.denoiser.conditioner.stored_example(count, self.data_shape)
        masks = {} if self.mask is None else self.mask.stored_example(count, shape)
        return {**fields, self.data_field: jnp.asarray(self.codec.example(count, shape)), **masks}

    def _pretrained_shapes(self) -> dict[str, Params]:
        return {path: pretrained.held(branch_at(self._fresh_shapes(self.denoiser), path.split("/")), origin)
                for path, origin in self.pretrained.items()}  # fmt: skip

    def _whole_shapes(self) -> dict[str, Params]:
        """The shapes of the objective's frozen denoisers."""
        frozen, own = self.objective.frozen.items(), self.denoiser.without(self.objective.added)
        return {name: pretrained.held(self._fresh_shapes(own), origin) for name, origin in frozen}

    def _fresh_shapes(self, denoiser: Denoiser) -> Params:
        return jax.eval_shape(lambda: nn.meta.unbox(self._init_all(denoiser, jax.random.key(0))))

    def init(self, key: Key[Array, ""]) -> Params:
        """Initial parameters, each boxed with the logical names of its axes.

        Those of `pretrained` are left out. The factors of `lora` are under the name `pretrained.LORA`.

        Raises:
          UserError: `pretrained` names no module, or `lora` kernels that are trained themselves.
        """
        every = self._init_all(self.denoiser, key)
        trained = pretrained.trained_part(every, self.pretrained, self.lora, jax.random.fold_in(key, 0))
        return with_dtype(trained, self.param_dtype)

    def _init_all(self, denoiser: Denoiser, key: Key[Array, ""]) -> Params:
        conditioner = denoiser.conditioner
        x, t = jnp.zeros((1, *self.data_shape)), jnp.full((1,), 0.5)
        arguments = (x, t, conditioner.example(1, self.data_shape), conditioner.none_dropped(1))
        return denoiser.init(key, *arguments, train=False)["params"]

    def full_params(self, params: Params, frozen: Mapping[str, Params]) -> Params:
        """All parameters of the denoiser: the trained ones with those of `pretrained`, changed by `lora`."""
        return pretrained.full_params(params, frozen, self.pretrained, self.lora)

    def init_task_state(self) -> Any:
        """The history of losses that the time sampler keeps."""
        return self.time_sampler.init_history()

    def draw(self, batch: Batch, context: TaskContext, key: Key[Array, ""]) -> dict:
        """Everything random about a batch: codec, noise, augmentations, conditions and their drops, the uniform numbers
        that become times, and what the objective draws.

        All examples are drawn at once, and without the parameters: `loss` maps the uniform numbers to times, through
        the process as far as it is learned. `importance` corrects for the preference of the time sampler. Fields may
        hold what `tasks.precomputed` has made of them.
        """
        size = len(jax.tree.leaves(batch[self.data_field])[0])
        key_times, key_noise, key_drop, key_fields, key_augment, key_codec = jax.random.split(key, 6)
        x_0 = self.codec.encode(context.frozen, batch[self.data_field], jax.random.split(key_codec, size))
        if self.augmentation is not None:
            x_0, labels = self.augmentation(x_0, jax.random.split(key_augment, size))
            batch = {**batch, FIELD: labels}
        conditioner, encoder = self.denoiser.conditioner, Encoder(self.codec, context.frozen)
        uniforms = time_sampling.uniforms(key_times, size, self.stratified)
        u, importance = self.time_sampler.choose(context.task_state, uniforms)
        weights = {name: batch[name] for name in (LOSS_WEIGHT,) if name in batch}
        if self.mask is not None:
            weights["pixel_weights"] = self.mask.weights(batch, self.data_shape)
        return {
            **weights,
            "x_0": x_0,
            "noise": jax.random.normal(key_noise, x_0.shape),
            "u": u,
            "importance": importance,
            "drop": conditioner.draw_drops(key_drop, size),
            "fields": conditioner.draw(batch, jax.random.split(key_fields, size), True, encoder),
            # Of a folded key, which leaves the other draws as they are.
            "objective": self.objective.draw(jax.random.fold_in(key_times, 0), size),
        }

    def loss(
        self, params: Params, context: TaskContext, examples: dict, key: Key[Array, ""], train: bool
    ) -> tuple[Float[Array, "batch"], Metrics]:
        """The objective for each of the examples of `draw`, times its importance and its own weight."""
        params = pretrained.full_params(params, context.frozen, self.pretrained, self.lora, train=True)
        process, u = self.denoiser.process_of(params), examples["u"]
        x_0, noise = examples["x_0"], examples["noise"]
        t = self.time_sampler.quantile(u, process)
        x_t = gaussian.diffuse(process, x_0, noise, t)
        arguments, rngs = (x_t, t, examples["fields"], examples["drop"]), {"dropout": key}
        output: Any = self.denoiser.apply({"params": params}, *arguments, train=train, rngs=rngs)
        log_variance: Any = self.denoiser.apply({"params": params}, t, method="log_variance")
        inputs = LossInputs(
            process,
            self.denoiser.parameterization,
            self.time_sampler,
            u,
            t,
            x_0,
            noise,
            x_t,
            output,
            log_variance,
            examples.get("pixel_weights"),
            Model.of(self.denoiser, params, context, examples, key, self.objective, train),
            examples.get("objective", {}),
        )
        losses, metrics = self.objective(inputs)
        return examples["importance"] * examples.get(LOSS_WEIGHT, 1.0) * losses, metrics

    def update_task_state(self, task_state: Any, examples: dict, losses: Float[Array, "batch"]) -> Any:
        """The history of losses after a step with these."""
        return self.time_sampler.update_history(task_state, examples["u"], losses / examples["importance"])

    def evaluation_loss(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        stored: Array,
        fields: Mapping[str, Any],
        t: Times,
        key: Key[Array, ""],
    ) -> Float[Array, "batch"]:
        """Mean squared error of the predicted data, conditional and without dropout, at chosen times.

        The same quantity whatever the objective: the held-out loss by noise level. Examples are not augmented, and
        conditions are as in sampling.

        Args:
          params: all parameters of the denoiser.
          frozen: trees by the names in `frozen`.
          stored: examples as they are stored.
          fields: their conditions.
        """
        conditioner, count = self.denoiser.conditioner, stored.shape[0]
        x_0: Data = self.codec.encode(frozen, stored, jax.random.split(jax.random.fold_in(key, 0), count))
        noise = jax.random.normal(key, x_0.shape)
        x_t = gaussian.diffuse(self.denoiser.process_of(params), x_0, noise, t)
        encoder = Encoder(self.codec, frozen)
        fields = {**fields, **conditioner.draw(fields, jax.random.split(key, count), False, encoder)}
        drop = conditioner.none_dropped(count)
        predicted: Any = self.denoiser.apply({"params": params}, x_t, t, fields, drop, method="predict")
        return mean_per_example(jnp.square(predicted.x_0 - x_0))

    def _stored(self, example: Mapping[str, Any]) -> np.ndarray:
        """The stored data of an example, checked to be of the codec's type."""
        name = self.data_field
        expect(
            name in example,
            "config.task.data_field",
            name,
            f"one of {', '.join(example)}",
            "name one of these",
        )
        return self.codec.checked(f"config.data.{name}", example[name])

    def _check_conditions(self, example: Mapping[str, Any], num_classes: int | None) -> None:
        conditioner: Any = self.denoiser.conditioner
        given = {name: np.asarray(example[name])[None] for name in conditioner.conditions if name in example}
        for name in conditioner.conditions:
            if name not in given and not conditioner.has_default(name):
                raise UserError(
                    f"config.data: expected examples with the condition {name}, got the fields {', '.join(example)}. "
                    "Fix: let data.conditions make it, or remove the condition"
                )
        # Strings cannot become JAX arrays; their condition's check reports them.
        arrays = {
            name: value if value.dtype.kind in "USO" else jnp.asarray(value) for name, value in given.items()
        }
        fields = conditioner.draw(arrays, jax.random.split(jax.random.key(0), 1), train=False)
        conditioner.check({name: fields[name] for name in given})
        label = conditioner.conditions.get(LABEL)
        if label is not None:
            field = f"config.task.denoiser.conditioner.conditions.{LABEL}.num_classes"
            expected = f"the number of classes of the data, {num_classes}"
            expect(
                label.classes in (None, num_classes), field, label.classes, expected, "use the same number"
            )
