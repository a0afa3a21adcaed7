"""Fine-tuning: a run initialised from the parameters of another one.

Parameters are named as in `training.partition`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UserError, require
from jaxdiff.training.partition import matches, paths, some_of
from jaxdiff.typing import Params

Layouts = tuple[Mapping[str, int], Mapping[str, int]]
"""What the input channels of the old and of the new network are, in their order: name -> how many."""


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """Another run, from whose parameters a run starts.

    What the new model has besides starts so that at step 0 it is the old model: new input channels have no weights
    yet, and a new condition says nothing.

    Attributes:
      workdir: the other run's folder.
      step: which of its checkpoints; the newest if None.
      ema: the averaged parameters, rather than those that the last step left.
      fresh: patterns of parameters that start as in a new run, or that only the other run has: a model with these is
        another one at step 0.
      packages: packages besides jaxdiff whose classes the other run's config may make.
    """

    workdir: str
    step: int | None = None
    ema: bool = True
    fresh: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


def transfer_params(
    old: Params,
    new: Params,
    zero_initialised: Sequence[str],
    layouts: Layouts,
    added: Sequence[str],
    fresh: Sequence[str],
) -> Params:
    """The parameters of `new` with the values that they have in `old`.

    Args:
      old: of the other run.
      new: fresh ones, of the model that is to be trained.
      zero_initialised: those of them that start as zeros, so that new conditions say nothing.
      layouts: the input channels of both networks. A kernel [..., inputs, outputs] that has become wider by those that
        are new keeps its weights for the extra_emas, and has zeros for these.
      added: patterns of parameters that the new model may have besides.
      fresh: see `InitFrom`.

    Raises:
      UserError: it names the parameters that one of the two models lacks, or that have another shape, or the pattern
        that fits none.
    """
    before, after = paths(old), paths(new)
    for pattern in fresh:
        some = any(matches(path, (pattern,)) for path in [*before, *after])
        require(some, "init_from.fresh", pattern, "it names no parameter", f"there are {some_of(after)}")
    lost = [path for path in before if path not in after and not matches(path, fresh)]
    missing = [path for path in after if path not in before and not matches(path, (*added, *fresh))]
    fix = "change the config, or name them in init_from.fresh, with *"
    if lost:
        raise UserError(f"init_from: only the other run has {some_of(lost)}. Fix: {fix}")
    if missing:
        raise UserError(f"init_from: the other run lacks {some_of(missing)}. Fix: {fix}")
    return jax.tree.unflatten(
        jax.tree.structure(new),
        [
            _start(path, before.get(path), leaf, zero_initialised, layouts, fresh)
            for path, leaf in after.items()
        ],
    )


def _start(
    path: str, old: Any, new: Any, zero_initialised: Sequence[str], layouts: Layouts, fresh: Sequence[str]
) -> Any:
    """The first value of one parameter."""
    if matches(path, fresh):
        return new
    if old is None:
        return jnp.zeros_like(new) if path in zero_initialised else new
    if old.shape == new.shape:
        return old.astype(new.dtype)
    widened = _widened(old, new.shape, layouts)
    if widened is None:
        shapes = f"{list(old.shape)} there and {list(new.shape)} here"
        raise UserError(
            f"init_from: {path} is {shapes}. Fix: change the config, or name it in init_from.fresh"
        )
    return widened.astype(new.dtype)


def _widened(old: Any, shape: tuple[int, ...], layouts: Layouts) -> Any:
    """A kernel for more input channels, the new ones without weights; None if it is not that in which they differ."""
    before, after = layouts
    if len(shape) < 2 or len(shape) != old.ndim:
        return None
    (*outer, inputs, outputs), (*outer_old, inputs_old, outputs_old) = shape, old.shape
    same = (outer, outputs) == (outer_old, outputs_old)
    same = same and (inputs_old, inputs) == (sum(before.values()), sum(after.values()))
    if not same or any(after.get(name) != count for name, count in before.items()):
        return None
    starts = dict(zip(after, np.cumsum([0, *after.values()]), strict=False))
    places = np.concatenate([starts[name] + np.arange(count) for name, count in before.items()])
    return jnp.zeros(shape, old.dtype).at[..., places, :].set(old)
