"""What a model cannot do, told before anything is compiled."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.errors import FlaxError

from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError, require
from jaxdiff.sampling.guidance.per_condition import PerCondition
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.typing import Params

Shape = tuple[int, int, int]


def check_guidance(recipe: Recipe, denoisers: Sequence[Denoiser]) -> None:
    """Set the guidance up as sampling does, without a model: what it lacks, it says now and not in the middle."""
    names = dict.fromkeys(denoisers[0].conditioner.conditions)

    def unused(*arguments: Any) -> Any:
        raise AssertionError("guidance calls no model before it is given images")

    guide = unused if len(denoisers) > 1 else None
    process: Any = denoisers[0].process
    recipe.guidance(unused, process, names, jax.random.split(jax.random.key(0), 1), guide)


def per_condition(rule: Any, scales: Mapping[str, float], conditioner: Any) -> PerCondition:
    """Guidance by these conditions; chained, and at which noise levels, as the guidance `rule` has it."""
    for name in scales:
        has = f"the model has: {', '.join(conditioner.conditions) or 'none'}"
        require(name in conditioner.conditions, "guidance", name, "it is no condition of the model", has)
        always = not conditioner.has_null(name)
        require(not always, "guidance", name, "the model cannot do without it", "leave it out")
    factors = tuple(float(scale) for scale in scales.values())
    return PerCondition(
        tuple(scales), factors, getattr(rule, "chained", True), getattr(rule, "interval", None)
    )


def check_shape(denoiser: Denoiser, params: Params, shape: Shape, trained: Shape) -> None:
    """Let the network see images of a shape, as far as that goes without numbers.

    Raises:
      UserError: it cannot; `trained`, what it was trained with, it can.
    """
    conditioner: Any = denoiser.conditioner
    size = f"{shape[0]}x{shape[1]}"
    require(min(shape) > 0, "size", size, "there would be no image", "give at least 1x1")

    def predict(params: Params) -> Any:
        x, t = jnp.zeros((1, *shape)), jnp.full((1,), 0.5)
        fields, drop = conditioner.example(1, shape), conditioner.none_dropped(1)
        return denoiser.apply({"params": params}, x, t, fields, drop, method="predict")

    try:
        jax.eval_shape(predict, params)
    except UserError as error:
        raise UserError(f"size={size}: the model cannot make it: {error}") from None
    except (FlaxError, TypeError, ValueError) as error:
        why = f"the network makes images of {trained[0]}x{trained[1]} alone"
        raise UserError(f"size={size}: {why}. Fix: use this size") from error
