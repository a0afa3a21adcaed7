"""Checks of a sampling request, before anything is compiled."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.errors import FlaxError

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.data.classes import some
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError, expect
from jaxdiff.sampling.guidance.classifier_free import Limited
from jaxdiff.sampling.guidance.per_condition import PerCondition
from jaxdiff.sampling.protocols import Guidance
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.typing import Params

Shape = tuple[int, ...]


def check_guidance(recipe: Recipe, denoisers: Sequence[Denoiser]) -> None:
    """Build the guidance with a stub model, so that configuration errors surface early."""
    names = dict.fromkeys(denoisers[0].conditioner.conditions)

    def stub(*arguments: Any) -> Any:
        raise AssertionError("building a guidance calls no model")

    guiding_model = stub if len(denoisers) > 1 else None
    process: Any = denoisers[0].process
    recipe.guidance(stub, process, names, jax.random.split(jax.random.key(0), 1), guiding_model)


def per_condition(rule: Guidance, scales: Mapping[str, float], conditioner: Conditioner) -> PerCondition:
    """Guidance with a scale per condition, and with the form and the noise levels of the guidance `rule`."""
    for name in scales:
        has = f"it has: {', '.join(conditioner.conditions) or 'none'}"
        expect(name in conditioner.conditions, "guidance", name, "a condition of the model", has)
        expect(conditioner.has_null(name), "guidance", name, "a condition with a null", "leave it out")
    factors = tuple(float(scale) for scale in scales.values())
    chained = rule.chained if isinstance(rule, PerCondition) else True
    interval = rule.interval if isinstance(rule, Limited) else None
    return PerCondition(tuple(scales), factors, chained, interval)


def check_class_names(field: str, denoisers: Sequence[Denoiser]) -> None:
    """Raise a `UserError` about `field` unless models that share labels number their classes alike."""
    named = [denoiser.conditioner.class_names for denoiser in denoisers]
    first, *others = [names for names in named if names] or [()]
    for names in others:
        expect(
            names == first,
            field,
            some(names),
            f"models with the same classes, {some(first)}",
            "use models that were trained with one class table",
        )


def check_shape(denoiser: Denoiser, params: Params, shape: Shape, trained: Shape) -> None:
    """Trace the network with images of a shape, without computing anything.

    Raises:
      UserError: the network does not accept it; `trained` is the shape that it was trained with.
    """
    conditioner = denoiser.conditioner
    size = f"{shape[0]}x{shape[1]}"
    expect(min(shape) > 0, "size", size, "at least 1x1", "give a larger size")

    def predict(params: Params) -> Any:
        x, t = jnp.zeros((1, *shape)), jnp.full((1,), 0.5)
        fields, drop = conditioner.example(1, shape), conditioner.none_dropped(1)
        return denoiser.apply({"params": params}, x, t, fields, drop, method="predict")

    try:
        jax.eval_shape(predict, params)
    except UserError as error:
        raise UserError(
            f"size={size}: expected a size that the model can generate, got an error: {error}"
        ) from None
    except (FlaxError, TypeError, ValueError) as error:
        raise UserError(
            f"size={size}: expected {trained[0]}x{trained[1]}, the only size of this network, got {size}. "
            "Fix: use this size"
        ) from error
