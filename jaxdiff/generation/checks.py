"""Checks of a sampling request, before anything is compiled."""

import functools
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import FlaxError

from jaxdiff.conditioning import nulls
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.data.classes import some
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError, expect
from jaxdiff.experiment import Experiment
from jaxdiff.models import reuse
from jaxdiff.sampling.guidance.classifier_free import Limited
from jaxdiff.sampling.guidance.per_condition import PerCondition
from jaxdiff.sampling.protocols import Dropping, Guidance, spans
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.typing import Params

Shape = tuple[int, ...]

WITHOUT_FLOAT16 = "cpu"
"""The platform whose attention does not compute in float16."""

_log = logging.getLogger(__name__)


def check_recipe(recipe: Recipe, denoisers: Sequence[Denoiser]) -> None:
    """Compare the sampler with the model, and build the guidance with a stub: configuration errors surface early.

    Raises:
      UserError: a sampler of flow maps and a model that reads one time or is guided by another, or wrong guidance.
    """
    if spans(recipe.sampler):
        _check_flow_map(recipe, denoisers)
    names = dict.fromkeys(denoisers[0].conditioner.conditions)

    def stub(*arguments: Any) -> Any:
        raise AssertionError("building a guidance calls no model")

    if recipe.reuse is not None:
        reuse.check(denoisers[0].network, recipe.reuse.blocks)
    guiding_model = stub if len(denoisers) > 1 else None
    process: Any = denoisers[0].process
    recipe.guidance(stub, process, names, jax.random.split(jax.random.key(0), 1), guiding_model)


def _check_flow_map(recipe: Recipe, denoisers: Sequence[Denoiser]) -> None:
    field, sampler = "sampling.sampler", type(recipe.sampler).__name__
    reads, expected = denoisers[0].conditioner.span is not None, "a model that reads the end of a step"
    fix = "use a sampler such as Heun, or a run that was trained with MeanFlow"
    expect(reads, field, sampler, expected, fix, "one that reads one time")
    expected, fix = "one model, whose flow has the guidance that it learned", "use ClassifierFree"
    expect(len(denoisers) == 1, field, sampler, expected, fix, "a guiding model as well")


def check_experiment(experiment: Experiment, mesh: jax.sharding.Mesh) -> None:
    """Check whether an experiment can be sampled on these devices, as far as no weights are needed.

    Raises:
      UserError: the grid has fewer times than the recipe has steps, or the devices do not support a network's dtype.
    """
    task, recipe = experiment.sampled, experiment.recipe
    if mesh.devices.flat[0].platform == WITHOUT_FLOAT16:
        codec: Any = task.codec
        _check_dtype("task.denoiser.network", task.denoiser.network)
        if not getattr(codec, "force_upcast", False):
            _check_dtype("task.codec.network", getattr(codec, "network", None))
    process: Any = recipe.process or task.denoiser.process
    if not isinstance(process, nn.Module):  # a learned one needs its parameters
        recipe.plan(process)


def _check_dtype(field: str, network: Any) -> None:
    dtype, fix = getattr(network, "dtype", None), f"--config.{field}.dtype=bfloat16, or float32"
    expect(dtype != "float16", f"{field}.dtype", dtype, "a type in which a CPU computes", fix, "float16")


def check_nulls(conditioner: Conditioner, names: Collection[str], field: str, value: object) -> None:
    """Raise `UserError` if a null that `field` needs was never trained and is therefore random; warn if it is zero."""
    for name in sorted(names):
        condition = conditioner.conditions[name]
        if not nulls.is_untrained(condition.null, condition.drop_rate):
            continue
        message = (
            f"{field}={value!r}: expected a trained null of {name}, got null={condition.null!r} with drop_rate=0, "
            f"which training never showed. Fix: use guidance 1 and a value of {name} for each image, or train with "
            "drop_rate=0.1; for weights that were trained with drops elsewhere, give "
            f"--config.task.denoiser.conditioner.conditions.{name}.drop_rate=0.1"
        )
        if condition.null == "learned":
            raise UserError(message)
        if not conditioner.has_default(name):  # zeros stand for such numbers as well
            _warn_once(message)


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)


def dropped(rule: Guidance, conditioner: Conditioner, negative: Mapping[str, Any]) -> frozenset[str]:
    """The conditions whose null a guidance shows: all dropped ones without a negative value.

    Warnings say if guidance can change nothing, since no condition has a null or a negative value to show instead, and
    if it leaves the conditions out.
    """
    found = rule.dropped(conditioner.conditions) if isinstance(rule, Dropping) else frozenset()
    instead = {name for name, value in negative.items() if value is not None}
    names = frozenset(name for name in found - instead if conditioner.has_null(name))
    if found and not names and not instead:
        _warn_once(
            f"guidance={rule.scale!r}: expected a condition with a null to guide away from, got null='none' in "
            f"{', '.join(sorted(found))}, so that guidance changes nothing. Fix: use guidance 1"
        )
    if found and rule.scale == 0:
        _warn_once(
            f"guidance={rule.scale!r}: expected a scale above 0 for samples that follow their conditions, got 0, which "
            f"leaves out {', '.join(sorted(found))}. Fix: use guidance 1, which is the model without guidance"
        )
    return names


def per_condition(rule: Guidance, scales: Mapping[str, float], conditioner: Conditioner) -> PerCondition:
    """Guidance with a scale per condition, and with the form and the noise levels of the guidance `rule`.

    The order of the chain is that of `rule`, if it has one; conditions that it does not name come last, as given.
    """
    for name in scales:
        has = f"it has: {', '.join(conditioner.conditions) or 'none'}"
        expect(name in conditioner.conditions, "guidance", name, "a condition of the model", has)
        expect(conditioner.has_null(name), "guidance", name, "a condition with a null", "leave it out")
    chained = rule.chained if isinstance(rule, PerCondition) else True
    interval = rule.interval if isinstance(rule, Limited) else None
    first = rule.conditions if isinstance(rule, PerCondition) else ()
    names = (*(name for name in first if name in scales), *(name for name in scales if name not in first))
    return PerCondition(names, tuple(float(scales[name]) for name in names), chained, interval)


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


def refusal(denoiser: Denoiser, params: Params, shape: Shape) -> str | None:
    """Why a network does not accept data of a shape, found by tracing it: nothing is computed. None if it does."""
    conditioner = denoiser.conditioner

    def predict(params: Params) -> Any:
        x, t = jnp.zeros((1, *shape)), jnp.full((1,), 0.5)
        fields, drop = conditioner.example(1, shape), conditioner.none_dropped(1)
        return denoiser.apply({"params": params}, x, t, fields, drop, method="predict")

    try:
        jax.eval_shape(predict, params)
    except UserError as error:
        return error.message.partition(". Fix: ")[0]
    except (FlaxError, TypeError, ValueError):
        return "the network has one size"
    return None
