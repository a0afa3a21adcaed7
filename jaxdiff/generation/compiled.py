"""The compiled side of a `Generator`: from arrays with one row for each image to images."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.denoiser import Denoiser
from jaxdiff.distributed import partitioning
from jaxdiff.errors import UserError
from jaxdiff.process.conversion import adapt
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.inversion import invert
from jaxdiff.sampling.loop import ConditionalDenoise, Encoded, Known, TimePath, fold_in
from jaxdiff.sampling.recipe import Recipe

CONDITION = (
    2**31 - 4
)  # folded into an image's key for what conditions draw, apart from the numbers of sampling


@dataclasses.dataclass(frozen=True)
class StaticArgs:
    """What a compiled program is specific to, besides its recipe: the model and, if there is one, its guide."""

    denoisers: tuple[Denoiser, ...]
    image_shape: tuple[int, int, int]
    mesh: jax.sharding.Mesh


class GenerationInputs(NamedTuple):
    """What is asked for, one row for each image.

    Attributes:
      fields, absent: the conditions, and which of them are not given.
      negative, no_negative: conditions that stand in for the null, and where the null stays.
      noise: to begin with, if it is not drawn.
      known, mask: what is given of the images, and where it is not.
      images: given whole, to be inverted.
    """

    fields: Any
    absent: Any
    negative: Any
    no_negative: Any
    noise: Any = None
    known: Any = None
    mask: Any = None
    images: Any = None


class _Models(NamedTuple):
    """All that a recipe wants to know."""

    denoise: ConditionalDenoise
    process: Process
    conditions: dict[str, Encoded]
    keys: Any
    guide: ConditionalDenoise | None


@functools.partial(jax.jit, static_argnums=(0, 1))
def generate(program: StaticArgs, recipe: Recipe, params, rows: GenerationInputs, index, seed):
    """Float images for global image numbers `index`, the same on every process."""
    denoise, process, conditions, keys, guide = _models(program, params, rows, index, seed)
    noise, images, mask = _split(program, (rows.noise, rows.known, rows.mask))
    noise = None if noise is None else noise.astype(jnp.float32)
    known = None if images is None else Known(images, mask)
    made = recipe(denoise, process, conditions, program.image_shape, keys, guide, noise, known)
    return jax.lax.with_sharding_constraint(made, partitioning.replicated(program.mesh))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def noise_of(
    program: StaticArgs, recipe: Recipe, iterations: int, params, rows: GenerationInputs, index, seed
):
    """The noise that comes to ``rows.images``, on every process."""
    denoise, process, conditions, keys, guide = _models(program, params, rows, index, seed)
    times = recipe.grid(process, recipe.steps)
    if isinstance(times, TimePath):
        fix = "choose one that only falls, such as Uniform"
        raise UserError(f"sampling.grid={recipe.grid!r}: its noise cannot be undone. Fix: {fix}")
    denoise = recipe.denoiser(denoise, process, conditions, keys, guide)
    x = process.signal(times[-1]).alpha * _split(program, rows).images
    noise = invert(denoise, process, times, x, keys, iterations) / process.signal(times[0]).sigma
    return jax.lax.with_sharding_constraint(noise, partitioning.replicated(program.mesh))


def _models(program: StaticArgs, params, rows: GenerationInputs, index, seed) -> _Models:
    """The models with their conditions embedded once, and a key for each image."""
    rows, index = _split(program, (rows, index))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index)
    conditioner = program.denoisers[0].conditioner

    def encode(fields, drop) -> list[dict[str, Any]]:
        drawn = conditioner.draw(fields, fold_in(keys, CONDITION), train=False)
        return [_encode(*model, drawn, drop) for model in zip(program.denoisers, params, strict=True)]

    given, null = encode(rows.fields, rows.absent), encode(rows.negative, rows.no_negative)
    conditions = {
        name: Encoded(
            [model.get(name) for model in given],
            [model.get(name) for model in null],
            condition.unaugmented(rows.fields[name]),
            rows.absent[name],
        )
        for name, condition in conditioner.conditions.items()
    }
    processes = [model.process_of(each) for model, each in zip(program.denoisers, params, strict=True)]

    def model(number: int) -> ConditionalDenoise:
        denoiser = program.denoisers[number]

        def denoise(x, t, conditions, drop) -> Prediction:
            def plain(x, t) -> Prediction:
                times = jnp.broadcast_to(t, x.shape[:1])
                shown = {
                    name: _shown(conditions[name], drop[name], number)
                    for name in denoiser.conditioner.conditions
                }
                found: Any = denoiser.apply(
                    {"params": params[number]}, x, times, shown, method="predict_encoded"
                )
                return found

            return adapt(plain, processes[number], processes[0])(x, t) if number else plain(x, t)

        return denoise

    return _Models(model(0), processes[0], conditions, keys, model(1) if len(params) > 1 else None)


def _encode(denoiser: Denoiser, params, fields, drop) -> dict[str, Any]:
    """The conditions that this model has, embedded."""
    own = [{name: tree[name] for name in denoiser.conditioner.conditions} for tree in (fields, drop)]
    encoded: Any = denoiser.apply({"params": params}, *own, method="encode")
    return encoded


def _shown(condition: Encoded, drop, number: int) -> Any:
    """A model's embedding of the condition, or of its null where it is dropped."""

    def choose(given, null):
        return jnp.where(drop.reshape(-1, *(1,) * (given.ndim - 1)), null, given)

    return jax.tree.map(choose, condition.given[number], condition.null[number])


def _split(program: StaticArgs, tree: Any) -> Any:
    """GenerationInputs shared out over the devices."""
    return jax.lax.with_sharding_constraint(tree, partitioning.batch_sharding(program.mesh))
