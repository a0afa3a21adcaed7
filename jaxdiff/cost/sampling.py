"""Network evaluations per sampled image: calls of the sampler times evaluations per guided call."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.cost.operations import Operations, count, programs_in
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.guidance.classifier_free import Limited
from jaxdiff.sampling.loop import as_path, ends
from jaxdiff.sampling.protocols import Conditions
from jaxdiff.sampling.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Evaluations:
    """Work of a recipe for one image.

    Attributes:
      calls: calls of the sampler; an upper bound if their number depends on the data.
      whole: of these, calls that run the whole network and reuse no features.
      model: evaluations of the network per call; a mean over the grid if guidance acts in an interval only.
      guiding_model: evaluations of another model per call (`Autoguidance`).
      other: further multiply-adds per call, for example of a classifier.
    """

    calls: int
    whole: int
    model: float
    guiding_model: float
    other: Operations


def evaluations(
    recipe: Recipe, process: Process, shape: tuple[int, ...], conditions: Callable[[], Conditions]
) -> Evaluations:
    """Count evaluations by tracing one guided call with a stand-in for the network.

    Args:
      recipe: the sampling recipe; the times of its grid are computed.
      process: the forward process; the recipe's own has precedence.
      shape: of a diffused example.
      conditions: returns the encoded conditions of one image; called while tracing.
    """
    x, t = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    process = recipe.process or process
    plain = dataclasses.replace(recipe, reuse=None)

    def trace(guiding_model: Callable | None) -> Any:
        def guided(x: Any, t: Any, keys: Any) -> Any:
            denoise = plain.denoiser(_stand_in(_MODEL), process, conditions(), keys, guiding_model)
            return denoise.call(x, t, denoise.init(x))

        return jax.make_jaxpr(guided)(x, t, keys)

    try:
        program = trace(None)
    except UserError:  # this guidance needs a guiding model; the others refuse one
        program = trace(_stand_in(_GUIDING_MODEL))
    inside = _fraction_in_interval(recipe, process)
    model, guiding_model = (_images(program.jaxpr, name, inside) for name in (_MODEL, _GUIDING_MODEL))
    calls = recipe.calls(process)
    whole = calls if recipe.reuse is None else recipe.reuse.whole_calls(calls)
    return Evaluations(calls, whole, model, guiding_model, count(program))


_MODEL, _GUIDING_MODEL = "jaxdiff_model", "jaxdiff_guiding_model"


def _stand_in(name: str) -> Callable:
    """A conditional denoiser that appears in traces as a call of this name."""

    def predict(x: Any, t: Any) -> Prediction:
        return Prediction(x * t, x + t)

    predict.__name__ = name
    call = jax.jit(predict)
    return lambda x, t, conditions, drop: call(x, t)


def _images(jaxpr: Any, name: str, inside: float) -> float:
    """Batch rows of the calls of this name; `inside`: weight of the more expensive of two branches."""
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.params.get("name") == name:
            total += eqn.invars[0].aval.shape[0]
            continue
        found = [_images(body, name, inside) for body in programs_in(eqn)]
        if eqn.primitive.name == "cond":
            total += inside * max(found) + (1 - inside) * min(found)
        else:
            total += eqn.params.get("length", 1) * sum(found)
    return total


def _fraction_in_interval(recipe: Recipe, process: Process) -> float:
    """The fraction of the grid's times at which guidance acts; 1 for guidance without an interval."""
    interval = recipe.guidance.interval if isinstance(recipe.guidance, Limited) else None
    if interval is None:
        return 1.0
    plan = recipe.plan(process)
    times = as_path(plan.times).start
    if plan.jumps:
        times = jnp.append(times, ends(plan.times)[1])
    return float(np.mean(jax.vmap(lambda t: interval.contains(process, t))(times)))
