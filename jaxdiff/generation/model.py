"""A trained model, prepared for sampling: shapes, requests and batches of compiled calls."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from flax.core import FrozenDict

from jaxdiff.codecs.pixels import Pixels
from jaxdiff.codecs.protocol import Codec
from jaxdiff.denoiser import Denoiser
from jaxdiff.distributed import partitioning
from jaxdiff.errors import UserError, expect
from jaxdiff.generation import checks, compiled, inputs
from jaxdiff.generation.compiled import GenerationInputs, StaticArgs, Trees
from jaxdiff.generation.steps import Listener, Observed, OnStep, colours, listening
from jaxdiff.process.prediction import with_label
from jaxdiff.runs.weights import load
from jaxdiff.sampling.guidance.classifier_free import check_scales
from jaxdiff.sampling.loop import as_path, ends
from jaxdiff.sampling.noise import fold_in, noise_like
from jaxdiff.sampling.protocols import Guidance
from jaxdiff.sampling.recipe import PRIOR, Recipe
from jaxdiff.typing import Params

UNITS = (2, 4, 8, 16, 32, 64, 128)
"""Numbers of which the sides of images may have to be multiples."""

Self = TypeVar("Self", bound="SampledModel")


@dataclasses.dataclass(frozen=True, eq=False)
class SampledModel:
    """A trained denoiser with a recipe for sampling it.

    Attributes:
      denoiser, params: the model, with all parameters.
      recipe: sampler, grid, steps and guidance.
      image_shape: shape of a sample, (height, width, channels) for images; see `of_size` for other sizes.
      mesh: the devices that share a batch.
      batch_size: the largest number of samples that are generated at once.
      guiding_model: a weaker model, for `Autoguidance`; see `guided_by`.
      codec: from diffused data to samples.
      frozen: parameters of the codec's networks, by name.
    """

    denoiser: Denoiser
    params: Params
    recipe: Recipe
    image_shape: tuple[int, ...]
    mesh: jax.sharding.Mesh
    batch_size: int = 256
    guiding_model: "SampledModel | None" = None
    codec: Codec = Pixels()
    frozen: Mapping[str, Params] = FrozenDict()

    def __post_init__(self):
        object.__setattr__(self, "denoiser", self.denoiser.for_images(self.image_shape, self.data_shape))

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of one diffused example."""
        return self.codec.data_shape(self.image_shape)

    def of_size(self: Self, height: int, width: int) -> Self:
        """The same generator for images of another size, which most convolutional networks can generate.

        Raises:
          UserError: a network or a condition cannot take this size; nothing is compiled to find out.
        """
        shape = (height, width, *self.image_shape[2:])
        if shape == self.image_shape:
            return self
        size, fix = f"{height}x{width}", "give a larger size"
        expect(min(height, width) > 0, "size", size, "at least 1x1", fix)
        reason = self._refusal(shape)
        if reason is not None:
            raise UserError(
                f"size={size}: expected a size that the model can generate, got one where {reason}. "
                f"Fix: use {self._nearest(height, width)}"
            )
        return dataclasses.replace(self, image_shape=shape)

    def _refusal(self, shape: tuple[int, ...]) -> str | None:
        """Why samples of a shape cannot be generated; None if they can."""
        for model in self._models:
            try:
                data_shape = model.codec.data_shape(shape)
            except UserError as error:
                return error.message.partition(". Fix: ")[0]
            reason = checks.refusal(model.denoiser, model.params, data_shape)
            if reason is not None:
                return reason
        return None

    def _nearest(self, height: int, width: int) -> str:
        """The size of multiples of the least power of two that can be generated; that of training without one."""
        tried = {(height, width)}
        for unit in UNITS:
            near = max(round(height / unit), 1) * unit, max(round(width / unit), 1) * unit
            if near not in tried and self._refusal((*near, *self.image_shape[2:])) is None:
                return f"{near[0]}x{near[1]}"
            tried.add(near)
        return f"{self.image_shape[0]}x{self.image_shape[1]}, as in training"

    def size(self, conditions: Mapping[str, Any], size: tuple[int, int] | None = None) -> tuple[int, int]:
        """(height, width) of samples with these conditions: `size` if given, or set by images among them."""
        return inputs.size(self.denoiser.conditioner, conditions, self.image_shape, self.data_shape, size)

    @property
    def starts(self) -> np.ndarray:
        """The times at which the steps of the recipe begin, from noise to data, the jump to x_0 included."""
        plan = self.recipe.plan(self._denoisers[0].process_of(self.params))
        start = np.asarray(as_path(plan.times).start)
        return np.append(start, np.asarray(ends(plan.times)[1])) if plan.jumps else start

    @property
    def steps_with_noise(self) -> int:
        """The number of steps of the recipe in which the sampler adds noise."""
        return self.recipe.draws_of_steps(self._denoisers[0].process_of(self.params))

    @property
    def calls(self) -> int:
        """Number of evaluations of the model for a sample (NFE), see `Recipe.calls`."""
        return self.recipe.calls(self._denoisers[0].process_of(self.params))

    def check(self) -> None:
        """Raise `UserError` where the recipe lacks something, such as a guiding model; before anything is compiled."""
        checks.check_recipe(self.recipe, self._denoisers)

    def check_nulls(self, scales: Iterable[float] = ()) -> None:
        """Raise `UserError` where guidance, of the recipe or at one of `scales`, shows a null without training."""
        for rule in (self.recipe.guidance, *map(self.recipe.guidance.with_scale, scales)):
            self._check_dropped(rule, {})

    def _check_dropped(self, rule: Guidance, negative: Mapping[str, Any]) -> None:
        conditioner: Any = self.denoiser.conditioner
        names = checks.dropped(rule, conditioner, negative)
        checks.check_nulls(conditioner, names, "guidance", rule.scale)

    def _first_level(self) -> np.float32:
        """``sigma / alpha`` at the first time of the recipe's grid."""
        process = self._followed.process_of(self.params)
        alpha, sigma = process.signal(ends(self.recipe.grid(process, self.recipe.steps))[0])
        return np.float32(sigma / alpha)

    def _noise(self, n: int, seed: int) -> np.ndarray:
        """The initial noise of the first n samples of a seed."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(n, dtype=np.uint32))
        return np.asarray(noise_like(fold_in(keys, PRIOR), jax.numpy.zeros((n, *self.data_shape))))

    def _draws(self, recipe: Recipe, draws: np.ndarray, n: int) -> np.ndarray:
        """The noise of the steps with one row for each sample, [n, steps, *data_shape]."""
        array, count = np.asarray(draws), dataclasses.replace(self, recipe=recipe).steps_with_noise
        sampler, fix = type(recipe.sampler).__name__, "leave it out, or give such floats"
        expected = (
            f"floats {[count, n, *self.data_shape]}"
            if count
            else f"none, since {sampler} adds no noise in its steps"
        )
        fits = np.issubdtype(array.dtype, np.floating) and array.shape == (count, n, *self.data_shape)
        got = f"{array.dtype}{list(array.shape)}"
        expect(count > 0 and fits, "draws", got, expected, fix)
        return np.moveaxis(array, 1, 0)

    def _encoded(self, images: np.ndarray, n: int, seed: int) -> np.ndarray:
        """The diffused data of stored images."""
        make = functools.partial(compiled.encode, self._static, self._trees)
        return self._in_batches(make, GenerationInputs({}, {}, {}, {}, images=images), n, seed)

    def _generated(
        self,
        recipe: Recipe,
        request: GenerationInputs,
        n: int,
        seed: int,
        first: int,
        finish: Callable,
        on_step: OnStep | None,
    ) -> np.ndarray:
        """Samples of a recipe, observed by `on_step`."""
        if on_step is None:
            unobserved = functools.partial(compiled.generate, self._static, recipe, self._trees)
            return self._in_batches(unobserved, request, n, seed, first, finish)
        images, fix = len(self.image_shape) == 3, "leave it out"
        expect(images, "on_step", on_step, "a model of images", fix, f"samples of {self.image_shape}")
        steps, size = self._steps(recipe), self._rows(n)
        preview = on_step.preview
        static = dataclasses.replace(
            self._static,
            observed=Observed(on_step.every, preview, on_step.images, steps, self.mesh.size == 1),
        )
        trees = self._trees._replace(preview={} if preview is None else load(preview.frozen, self.mesh))
        linear = on_step.images and preview is None
        listener = Listener(on_step, steps, self._colours if linear else None)

        with listening(listener) as number:

            def make(chosen: GenerationInputs, numbers: np.ndarray, seed: np.uint32) -> Any:
                done = int(numbers[0]) - first
                listener.begin(done // size, -(-n // size), n - done)
                made = compiled.generate(static, recipe, trees, chosen, numbers, seed, number)
                jax.block_until_ready(made)
                jax.effects_barrier()  # no report of this batch comes later
                return made

            return self._in_batches(make, request, n, seed, first, finish)

    def observed_steps(self, n: int) -> int:
        """Number of steps, those of all batches, that `on_step` sees while n samples are made."""
        return -(-n // self._rows(n)) * self._steps(self.recipe)

    def _steps(self, recipe: Recipe) -> int:
        """Number of steps of one batch."""
        plan = recipe.plan(self._denoisers[0].process_of(self.params))
        return len(as_path(plan.times).start) + plan.jumps

    @functools.cached_property
    def _colours(self) -> Any:
        """The map from data to colours; None where data are images themselves."""
        if self.data_shape == tuple(self.image_shape):
            return None
        return colours(self.codec, self.frozen, self.data_shape)

    def _in_batches(
        self,
        make: Callable,
        request: GenerationInputs,
        n: int,
        seed: int,
        start: int = 0,
        finish: Callable = np.asarray,
    ) -> np.ndarray:
        whole = isinstance(seed, int | np.integer) and 0 <= seed < 2**32
        expect(whole, "seed", seed, "a 32-bit whole number", "give 0 to 4294967295")
        size = self._rows(n)
        batches = []
        for first in range(0, n, size):
            index = np.arange(first, first + size, dtype=np.uint32)
            used = np.minimum(index, n - 1)  # the last batch is padded with copies, which are cut off again
            chosen = jax.tree.map(lambda value, used=used: value[used], request)
            numbers = index + np.uint32(start)
            batches.append(finish(np.asarray(make(chosen, numbers, np.uint32(seed)))[: n - first]))
        return np.concatenate(batches)

    def _sized(self: Self, size: tuple[int, int] | None, conditions: Mapping[str, Any]) -> Self:
        if len(self.image_shape) != 3:
            expect(size is None, "image_size", size, "None for samples that are not images", "leave it out")
            return self
        return self.of_size(*self.size(conditions, size))

    def _recipe(
        self, guidance: float | Mapping[str, float] | None, negative: Mapping[str, Any] | None
    ) -> Recipe:
        rule = self.recipe.guidance
        if isinstance(guidance, Mapping):
            rule = checks.per_condition(rule, guidance, self.denoiser.conditioner)
        elif guidance is not None:
            finite = isinstance(guidance, int | float | np.number) and math.isfinite(guidance)
            expect(finite, "guidance", guidance, "a finite number", "give a scale, such as 2.0")
            check_scales("guidance", float(guidance))
            rule = rule.with_scale(float(guidance))
        expect(not negative or rule.scale != 1, "negative", negative,
               "no negative conditions where guidance is off (scale 1)", "give another guidance scale")  # fmt: skip
        recipe = dataclasses.replace(self.recipe, guidance=rule)
        checks.check_recipe(recipe, self._denoisers)
        self._check_dropped(rule, negative or {})
        return recipe

    def _request(
        self, n: int | None, conditions: Mapping, negative: Mapping | None, otherwise: int = 1
    ) -> tuple[GenerationInputs, int]:
        """Conditions as arrays with one row for each sample, and the number of samples."""
        conditioners: list[Any] = [model.denoiser.conditioner for model in self._models]
        first, shape = conditioners[0], self.data_shape
        fields, absent, n = inputs.fields(conditioners, n, conditions, shape, otherwise)
        for conditioner in conditioners:
            for name in conditioner.conditions:
                if absent[name].any():
                    checks.check_nulls(conditioner, [name], name, None)
        other = {name: None for name in first.conditions if first.has_null(name)}
        other |= {name: value for name, value in conditions.items() if name not in other} | dict(
            negative or {}
        )
        instead, no_negative, _ = inputs.fields(conditioners, n, other, shape)
        known, mask = inputs.known(first.conditions, fields, absent, self.image_shape)
        return GenerationInputs(fields, absent, instead, no_negative, known=known, mask=mask), n

    def _replaces(self, explicit: bool) -> bool:
        """Whether known pixels replace predictions at every step; samples have them in any case.

        Args:
          explicit: they are given as `known`, and are not those of a condition.
        """
        conditions = self.denoiser.conditioner.conditions.values()
        return (
            explicit or self.recipe.inpainting is not None or all(each.replaces_known for each in conditions)
        )

    def _rows(self, n: int) -> int:
        """Rows of a compiled batch: a power of two, for few compilations, rounded up to divide over the devices."""
        ways = math.prod(self.mesh.shape[axis] for axis in partitioning.BATCH_AXES)
        size = min(self.batch_size, 1 << (n - 1).bit_length())
        return -(-size // ways) * ways

    @property
    def _rank(self) -> int:
        """Axes of a batch of samples."""
        return 1 + len(self.image_shape)

    @property
    def _stored_kind(self) -> type:
        """The type of stored numbers: uint8, or floats of any precision."""
        dtype = self.codec.example(1, self.image_shape).dtype
        return np.floating if np.issubdtype(dtype, np.floating) else dtype.type

    @property
    def _models(self) -> "list[SampledModel]":
        return [self] if self.guiding_model is None else [self, self.guiding_model]

    @property
    def _denoisers(self) -> tuple[Denoiser, ...]:
        """The denoisers of the models; the first as the recipe follows it."""
        return (self._followed, *(model.denoiser for model in self._models[1:]))

    @property
    def _followed(self) -> Denoiser:
        """The denoiser with the noise process and the noise label of the recipe, if it has its own."""
        followed, process, label = self.denoiser, self.recipe.process, self.recipe.noise_label
        if process is not None:
            followed = followed.clone(process=process)
        if label is not None:
            followed = followed.clone(parameterization=with_label(followed.parameterization, label))
        return followed

    @property
    def _trees(self) -> Trees:
        return Trees(tuple(model.params for model in self._models), self.frozen)

    @property
    def _static(self) -> StaticArgs:
        return StaticArgs(self._denoisers, self.codec, self.data_shape, self.mesh)
