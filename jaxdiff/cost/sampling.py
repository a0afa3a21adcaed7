"""How often one image runs the network: calls of the sampler, times what guidance makes of each."""

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
from jaxdiff.sampling.loop import as_path
from jaxdiff.sampling.protocols import Conditions
from jaxdiff.sampling.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Evaluations:
    """What a recipe does for one image.

    Attributes:
      calls: of the sampler; the most there can be, where that depends on the data.
      model: evaluations of the network per call; a fraction where guidance acts in an interval only.
      guide: evaluations per call of another model (`Autoguidance`).
      other: multiply-adds per call beside them, of a classifier for example.
    """

    calls: int
    model: float
    guide: float
    other: Operations


def evaluations(
    recipe: Recipe, process: Process, shape: tuple[int, int, int], conditions: Callable[[], Conditions]
) -> Evaluations:
    """Trace one guided call with a stand-in for the network, and see how many images the stand-in is shown.

    Args:
      recipe, process: as for sampling; the times of the grid are computed.
      shape: (height, width, channels) of an image.
      conditions: makes the conditions of one image, as sampling has them; called while tracing.
    """
    x, t = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))

    def trace(guide: Callable | None) -> Any:
        def guided(x: Any, t: Any, keys: Any) -> Any:
            denoise = recipe.denoiser(_stand_in(_MODEL), process, conditions(), keys, guide)
            return denoise.call(x, t, denoise.init(x))

        return jax.make_jaxpr(guided)(x, t, keys)

    try:
        program = trace(None)
    except UserError:  # it needs a guide, which those that need none refuse
        program = trace(_stand_in(_GUIDE))
    inside = _share_of_interval(recipe, process)
    model, guide = (_images(program.jaxpr, name, inside) for name in (_MODEL, _GUIDE))
    return Evaluations(recipe.calls(process), model, guide, count(program))


_MODEL, _GUIDE = "jaxdiff_model", "jaxdiff_guide"


def _stand_in(name: str) -> Callable:
    """A conditional denoiser that traces show as a call of this name."""

    def predict(x: Any, t: Any) -> Prediction:
        return Prediction(x * t, x + t)

    predict.__name__ = name
    call = jax.jit(predict)
    return lambda x, t, conditions, drop: call(x, t)


def _images(jaxpr: Any, name: str, inside: float) -> float:
    """Images that calls of this name are shown; of two branches the dearer one is taken in a share `inside`."""
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


def _share_of_interval(recipe: Recipe, process: Process) -> float:
    """The share of the grid's times at which guidance acts; 1 where it knows no interval."""
    interval: Any = getattr(recipe.guidance, "interval", None)
    if interval is None:
        return 1.0
    path = as_path(recipe.times(process))
    times = path.start if recipe.t_end is not None else jnp.append(path.start, path.end[-1:])
    return float(np.mean(jax.vmap(lambda t: interval.contains(process, t))(times)))
