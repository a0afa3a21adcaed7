"""The compiled side of a `Generator`: from arrays with one row for each sample to samples."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from jaxdiff.codecs.encoder import Encoder
from jaxdiff.codecs.protocol import Codec, Shape
from jaxdiff.denoiser import Denoiser
from jaxdiff.distributed import partitioning
from jaxdiff.errors import UserError
from jaxdiff.generation.steps import Observed
from jaxdiff.models import reuse
from jaxdiff.process.conversion import adapt
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.inversion import invert
from jaxdiff.sampling.learning import After
from jaxdiff.sampling.noise import fold_in
from jaxdiff.sampling.protocols import ConditionalDenoise, Encoded, KnownData, Numeric, TimePath, spans
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.typing import Params, Scalar

CONDITION = 2**31 - 4
"""Folded into a sample's key for the random draws of conditions, apart from the numbers that sampling folds in."""

CODEC = 2**31 - 5
"""Folded into a sample's key for a codec that samples."""


@dataclasses.dataclass(frozen=True)
class StaticArgs:
    """The static arguments of a compiled function, in addition to its recipe.

    Attributes:
      denoisers: of the model and, if there is one, of its guiding model.
      codec: from diffused data to samples.
      data_shape: of one diffused example.
      mesh: the devices that share a batch.
      observed: what is reported while samples are made; None for nothing.
    """

    denoisers: tuple[Denoiser, ...]
    codec: Codec
    data_shape: Shape
    mesh: jax.sharding.Mesh
    observed: Observed | None = None


class Trees(NamedTuple):
    """Parameters: those of each denoiser, and by name those of the codec's networks and of the previews' codec."""

    denoisers: tuple[Params, ...]
    frozen: Mapping[str, Params]
    preview: Mapping[str, Params] = FrozenDict()


class GenerationInputs(NamedTuple):
    """A request, one row for each sample.

    Attributes:
      fields, absent: the conditions, and where they are not given.
      negative, no_negative: conditions in place of the null, and where the null stays.
      noise: standard normal data to start from, if it is not drawn.
      draws: standard normal noise of each step, [n, steps, *data_shape], if it is not drawn.
      noisy: noisy data to continue from, in place of noise.
      known, mask: stored examples, and where they are not given.
      images: complete stored examples, to be inverted or encoded.
    """

    fields: Any
    absent: Any
    negative: Any
    no_negative: Any
    noise: Any = None
    draws: Any = None
    noisy: Any = None
    known: Any = None
    mask: Any = None
    images: Any = None


class _Models(NamedTuple):
    """Everything that a recipe is given."""

    denoise: ConditionalDenoise
    process: Process
    conditions: dict[str, Encoded]
    keys: Any
    guiding_model: ConditionalDenoise | None


@dataclasses.dataclass
class Programs:
    """Counts compiled programs: `count` is how many of `generate` this process has compiled."""

    count: int = 0


PROGRAMS = Programs()


def generate(
    static: StaticArgs, recipe: Recipe, trees: Trees, inputs: GenerationInputs, index, seed, listener=None
):
    """Decoded samples for global sample numbers `index`, or noisy data with `Recipe.until`; on every process.

    The scale and the interval of the guidance are arguments of the program: other values need no compilation.
    `listener` is the number of what `static.observed` is reported to.
    """
    return _generate(static, *_split_recipe(recipe), trees, inputs, index, seed, listener)


def lower(static: StaticArgs, recipe: Recipe, trees: Trees, inputs: GenerationInputs, index, seed):
    """The program of `generate` as a ``jax.stages.Lowered``; shapes suffice as arguments."""
    return _generate.lower(static, *_split_recipe(recipe), trees, inputs, index, seed, None)


def _split_recipe(recipe: Recipe) -> tuple[Recipe, Mapping[str, float]]:
    """The static part of a recipe, and the numbers that are arguments of its program."""
    rule = recipe.guidance
    if not isinstance(rule, Numeric):
        return recipe, {}
    numbers = dict(rule.numbers)
    return dataclasses.replace(recipe, guidance=rule.with_numbers(dict.fromkeys(numbers))), numbers


def _join_recipe(recipe: Recipe, numbers: Mapping[str, Any]) -> Recipe:
    """The inverse of `_split_recipe`, inside the program."""
    rule = recipe.guidance
    joined = rule.with_numbers(numbers) if isinstance(rule, Numeric) else rule
    return dataclasses.replace(recipe, guidance=joined)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(static, recipe, numbers, trees, inputs, index, seed, listener):
    PROGRAMS.count += 1  # runs while the program is traced, once for each
    recipe = _join_recipe(recipe, numbers)
    denoise, process, conditions, keys, guiding_model = _models(static, trees, inputs, index, seed)
    noise, noisy, stored, mask = _split(static, (inputs.noise, inputs.noisy, inputs.known, inputs.mask))
    noise, noisy, draws = (
        None if each is None else each.astype(jnp.float32)
        for each in (noise, noisy, _split(static, inputs.draws))
    )
    draws = None if draws is None else jnp.moveaxis(draws, 1, 0)
    known = None
    if stored is not None:
        unknown = recipe.data_mask(mask, static.data_shape)
        known = KnownData(_encoded(static, trees, stored, index, seed), unknown)
    shape = static.data_shape
    observe = static.observed and static.observed.observe(trees.preview, listener)
    x = recipe(denoise, process, conditions, shape, keys, guiding_model, noise, known, noisy, observe, draws)
    return _replicated(static, x if recipe.until is not None else static.codec.decode(trees.frozen, x))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def data_at_end(
    static: StaticArgs,
    recipe: Recipe,
    first: float,
    trees: Trees,
    inputs: GenerationInputs,
    index,
    seed,
    log_snr,
):
    """Diffused data at the end of a recipe with the grid `After(first, log_snr)`."""
    denoise, process, conditions, keys, guiding_model = _models(static, trees, inputs, index, seed)
    # Calls of the model are computed again in a backward pass, which then needs the memory of one call.
    guiding = None if guiding_model is None else jax.checkpoint(guiding_model)
    recipe = dataclasses.replace(recipe, grid=After(first, log_snr))
    return recipe(jax.checkpoint(denoise), process, conditions, static.data_shape, keys, guiding)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def distance_at_end(
    static: StaticArgs,
    recipe: Recipe,
    first: float,
    trees: Trees,
    inputs: GenerationInputs,
    index,
    seed,
    exact,
    log_snr,
):
    """The mean squared distance of `data_at_end` from `exact`, and its gradient in `log_snr`."""

    def distance(log_snr):
        end = data_at_end(static, recipe, first, trees, inputs, index, seed, log_snr)
        return jnp.mean((end - exact) ** 2)

    return jax.value_and_grad(distance)(log_snr)


def noise_of(
    static: StaticArgs, recipe: Recipe, iterations: int, trees: Trees, inputs: GenerationInputs, index, seed
):
    """DDIM inversion of `inputs.images`: noise [n, *data_shape], replicated on every process."""
    recipe, numbers = _split_recipe(recipe)
    return _noise_of(static, recipe, iterations, numbers, trees, inputs, index, seed)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _noise_of(static, recipe, iterations, numbers, trees, inputs, index, seed):
    recipe = _join_recipe(recipe, numbers)
    denoise, process, conditions, keys, guiding_model = _models(static, trees, inputs, index, seed)
    recipe = dataclasses.replace(recipe, fixed_stride=None, reuse=None)  # its calls are at other points
    times = recipe.plan(process).times
    if spans(recipe.sampler):
        raise UserError(
            f"sampling.sampler={type(recipe.sampler).__name__!r}: expected a sampler of one time, since inversion "
            "follows the flow in small steps, got one of flow maps. Fix: use one such as Ddim"
        )
    if isinstance(times, TimePath):
        raise UserError(
            f"sampling.grid={recipe.grid!r}: expected a grid that only falls, since inversion cannot undo fresh noise, "
            "got one that rises. Fix: use one such as Uniform"
        )
    denoise = recipe.denoiser(denoise, process, conditions, keys, guiding_model)
    x = process.signal(times[-1]).alpha * _encoded(static, trees, _split(static, inputs.images), index, seed)
    noise = invert(denoise, process, times, x, keys, iterations) / recipe.initial_std(process, times[0])
    return _replicated(static, noise)


@functools.partial(jax.jit, static_argnums=0)
def encode(static: StaticArgs, trees: Trees, inputs: GenerationInputs, index, seed):
    """Diffused data [n, *data_shape] of `inputs.images`, replicated on every process."""
    return _replicated(static, _encoded(static, trees, _split(static, inputs.images), index, seed))


def _models(static: StaticArgs, trees: Trees, inputs: GenerationInputs, index, seed) -> _Models:
    """The models with their conditions embedded once, and a key for each sample."""
    inputs, keys = _split(static, inputs), _keys(static, index, seed)
    conditioner = static.denoisers[0].conditioner
    models = list(zip(static.denoisers, trees.denoisers, strict=True))

    def embed(models, fields, drop) -> list[dict[str, Any]]:
        encoder = Encoder(static.codec, trees.frozen)
        drawn = conditioner.draw(fields, fold_in(keys, CONDITION), False, encoder)
        return [_embedded(*model, drawn, drop) for model in models]

    cond = embed(models, inputs.fields, inputs.absent)
    negative = [(denoiser.for_negative(), params) for denoiser, params in models]
    uncond = embed(negative, inputs.negative, inputs.no_negative)
    conditions = {
        name: Encoded(
            [model.get(name) for model in cond],
            [model.get(name) for model in uncond],
            condition.unaugmented(inputs.fields[name]),
            inputs.absent[name],
        )
        for name, condition in conditioner.conditions.items()
    }
    processes = [denoiser.process_of(params) for denoiser, params in models]

    own, *others = (_Network(denoiser, params, number) for number, (denoiser, params) in enumerate(models))
    guiding = [_adapted(network, processes[network.number], processes[0]) for network in others]
    return _Models(own, processes[0], conditions, keys, guiding[0] if guiding else None)


@dataclasses.dataclass(frozen=True, eq=False)
class _Network:
    """The network of a model as a conditional denoiser, which can give away its features and be told the end of a step.

    Attributes:
      denoiser, params: the model.
      number: position of the model's embeddings in those of each condition.
      end: the time at which a step ends, see `Denoiser.predict`; None where the model is not told.
    """

    denoiser: Denoiser
    params: Params
    number: int
    end: Scalar | None = None

    def __call__(self, x, t, conditions, drop) -> Prediction:
        return self._apply({}, False, x, t, conditions, drop)

    def until(self, t_next: Scalar) -> "_Network":
        """See `jaxdiff.sampling.protocols.FlowMapDenoise`."""
        return dataclasses.replace(self, end=t_next)

    def keeping(self, x, t, conditions, drop, blocks: int) -> tuple[Prediction, Any]:
        """See `jaxdiff.sampling.reuse.ReusableDenoise`."""
        prediction, made = self._apply({}, [reuse.COLLECTION], x, t, conditions, drop)
        return prediction, reuse.kept(made[reuse.COLLECTION]["network"], blocks)

    def reusing(self, x, t, conditions, drop, blocks: int, features) -> Prediction:
        """See `jaxdiff.sampling.reuse.ReusableDenoise`."""
        return self._apply({reuse.COLLECTION: {"network": features}}, False, x, t, conditions, drop)

    def _apply(self, collections, mutable, x, t, conditions, drop) -> Any:
        times, until = (
            None if time is None else jnp.broadcast_to(time, x.shape[:1]) for time in (t, self.end)
        )
        names = self.denoiser.conditioner.conditions
        shown = {name: _shown(conditions[name], drop[name], self.number) for name in names}
        variables = {"params": self.params, **collections}
        options = {"until": until, "method": "predict_encoded", "mutable": mutable}
        return self.denoiser.apply(variables, x, times, shown, **options)


def _adapted(network: _Network, source: Process, target: Process) -> ConditionalDenoise:
    """A network that was trained on the process `source`, for noisy data of `target`."""

    def denoise(x, t, conditions, drop) -> Prediction:
        return adapt(lambda x, t: network(x, t, conditions, drop), source, target)(x, t)

    return denoise


def _embedded(denoiser: Denoiser, params, fields, drop) -> dict[str, Any]:
    """The conditions that this model has, embedded."""
    own = [{name: tree[name] for name in denoiser.conditioner.conditions} for tree in (fields, drop)]
    embedded: Any = denoiser.apply({"params": params}, *own, method="encode")
    return embedded


def _shown(condition: Encoded, drop, number: int) -> Any:
    """A model's embedding of the condition, or of its null where it is dropped."""

    def choose(cond, uncond):
        return jnp.where(drop.reshape(-1, *(1,) * (cond.ndim - 1)), uncond, cond)

    return jax.tree.map(choose, condition.cond[number], condition.uncond[number])


def _encoded(static: StaticArgs, trees: Trees, stored, index, seed):
    keys = fold_in(_keys(static, index, seed), CODEC)
    return static.codec.encode(trees.frozen, stored, keys)


def _keys(static: StaticArgs, index, seed):
    """A key for each sample, by its number."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), _split(static, index))


def _split(static: StaticArgs, tree: Any) -> Any:
    """Rows divided over the devices."""
    return jax.lax.with_sharding_constraint(tree, partitioning.batch_sharding(static.mesh))


def _replicated(static: StaticArgs, values: Any) -> Any:
    return jax.lax.with_sharding_constraint(values, partitioning.replicated(static.mesh))
