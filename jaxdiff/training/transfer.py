"""Fine-tuning: a run initialised from the parameters of another one.

Parameters are named as in `training.partition`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UserError, one_of
from jaxdiff.trees import HALF, check_patterns, matches, paths, some_of
from jaxdiff.typing import Params

Layouts = tuple[Mapping[str, int], Mapping[str, int]]
"""Input channels of the old and of the new network, in order: name -> number of channels."""


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """Initial parameters from another run.

    At step 0 the new model computes the same function as the old one: weights of new input channels start as zeros, and
    a new condition has no effect yet. A new ControlNet starts as a copy of the U-Net (`jaxdiff.models.control_net`).

    Attributes:
      workdir: folder of the other run.
      step: step of its checkpoint; the newest if None.
      ema: use the averaged parameters instead of the latest ones.
      fresh: patterns of parameters that start as in a new run, or that only the other run has. With these, the new
        model may differ from the old one at step 0.
      packages: packages, in addition to jaxdiff, whose classes the other run's config may build.
      dtype: the type in which the device holds the other run's files of parameters, such as those of a converted model,
        until they are copied. "float16" takes half the memory.
    """

    workdir: str
    step: int | None = None
    ema: bool = True
    fresh: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    dtype: str = "float32"

    def __post_init__(self):
        one_of(self, "dtype", ("float32", *HALF))


def transfer_params(
    old: Params,
    new: Params,
    zero_initialised: Sequence[str],
    layouts: Layouts,
    added: Sequence[str],
    fresh: Sequence[str],
    elsewhere: Sequence[str] = (),
) -> Params:
    """Parameters of the new model, with values of the old one.

    Args:
      old: parameters of the other run.
      new: initial parameters of the model to train.
      zero_initialised: paths of new parameters that start as zeros, so that new conditions have no effect.
      layouts: input channels of both networks. A kernel [..., inputs, outputs] with additional inputs keeps its weights
        for the old ones, and has zeros for the new ones.
      added: patterns of parameters that only the new model may have.
      fresh: see `InitFrom`.
      elsewhere: patterns of old parameters that the new model has from elsewhere, such as a published file.

    Raises:
      UserError: parameters exist in one model only or have other shapes, or a pattern of `fresh` matches none.
    """
    before, after = paths(old), paths(new)
    check_patterns("init_from.fresh", fresh, {**after, **before}, "parameter")
    lost, missing = _alone(before, after, fresh, elsewhere), _alone(after, before, fresh, added)
    fix = "change the config, or name them in init_from.fresh, with *"
    if lost:
        raise UserError(
            f"init_from: expected no parameter of the other run alone, got {some_of(lost)}. Fix: {fix}"
        )
    if missing:
        expected = f"expected a value in the other run for each parameter, got none for {some_of(missing)}"
        raise UserError(f"init_from: {expected}. Fix: {fix}")
    return jax.tree.unflatten(
        jax.tree.structure(new),
        [
            _start(path, before.get(path), leaf, zero_initialised, layouts, fresh)
            for path, leaf in after.items()
        ],
    )


def _alone(one: Params, other: Params, *allowed: Sequence[str]) -> list[str]:
    """Paths that one of two models has alone, without those that patterns allow."""
    return [path for path in one if path not in other and not any(matches(path, each) for each in allowed)]


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
        raise UserError(
            f"init_from: expected {path} {list(new.shape)} in the other run, got {list(old.shape)}. "
            "Fix: change the config, or name it in init_from.fresh"
        )
    return widened.astype(new.dtype)


def _widened(old: Any, shape: tuple[int, ...], layouts: Layouts) -> Any:
    """The kernel with zeros for new input channels; None if the shapes differ in another way."""
    before, after = layouts
    if len(shape) < 2 or len(shape) != old.ndim:
        return None
    (*outer, inputs, outputs), (*outer_old, inputs_old, outputs_old) = shape, old.shape
    same = (outer, outputs) == (outer_old, outputs_old)
    same = same and (inputs_old, inputs) == (sum(before.values()), sum(after.values()))
    if not same or any(after.get(name) != count for name, count in before.items()):
        return None
    starts = dict(zip(after, np.cumsum([0, *after.values()]), strict=False))
    positions = np.concatenate([starts[name] + np.arange(count) for name, count in before.items()])
    return jnp.zeros(shape, old.dtype).at[..., positions, :].set(old)
