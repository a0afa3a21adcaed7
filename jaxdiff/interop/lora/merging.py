"""Merging adapters into weights."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxdiff.errors import UserError, expect
from jaxdiff.interop.lora.adapters import Adapter
from jaxdiff.interop.lora.factors import Array


def merged(
    weights: Mapping[str, Array], adapters: Mapping[str, Adapter], scale: float = 1.0
) -> dict[str, Array]:
    """The weights of one network with adapters merged: ``W + scale alpha/rank up @ down``.

    The arithmetic is float32; the result has the dtype of the weights. For DoRA, the sum is then rescaled to its
    magnitudes, so that a scale of 0 or less does not undo it.

    Args:
      weights: arrays by their names in diffusers. They are not changed.
      adapters: adapters by the same names; see `reading.read_lora`.
      scale: strength, of any sign. Scales s and then -s return the weights, to rounding, unless there is DoRA.

    Raises:
      UserError: an adapter's weight is missing or of another shape, or the result is beyond the range of its dtype.
    """
    return merged_all(weights, [(adapters, scale)])


def merged_all(
    weights: Mapping[str, Array], files: Sequence[tuple[Mapping[str, Adapter], float]]
) -> dict[str, Array]:
    """The weights with several files merged, each with its scale, rounded to their dtype once.

    The order of the files matters for DoRA only, which rescales what the files before it give.
    """
    read = dict(weights)
    for adapters, scale in files:
        expect(bool(np.isfinite(scale)), "scale", scale, "a finite number", "give such a scale")
        _check(read, adapters)
    changed = dict.fromkeys(name for adapters, _ in files for name in adapters)
    return read | {name: _merged(name, read[name], files) for name in changed}


def shapes(weights: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's arrays, as `reading.read_lora` takes them."""
    return {name: tuple(array.shape) for name, array in weights.items()}


def _check(weights: Mapping[str, Array], adapters: Mapping[str, Adapter]) -> None:
    fix = "read the file with the names and shapes of this network"
    for name, adapter in adapters.items():
        expect(name in weights, "adapters", name, "names of the network's weights", fix)
        shape = tuple(weights[name].shape)
        expect(
            shape == adapter.shape, f"adapters[{name!r}]", adapter.shape, f"the weight's shape {shape}", fix
        )


def _merged(name: str, weight: Array, files: Sequence[tuple[Mapping[str, Adapter], float]]) -> Array:
    value = np.asarray(weight, np.float32)
    for adapters, scale in files:
        if name in adapters:
            value = adapters[name].applied(value, scale)
    with np.errstate(over="ignore"):  # reported below
        rounded = value.astype(weight.dtype)
    if not np.isfinite(rounded.astype(np.float32)).all():
        raise UserError(
            f"--lora: expected finite weights, got {name} beyond the range of {weight.dtype.name}. "
            "Fix: give smaller scales, or weights in float32"
        )
    return rounded
