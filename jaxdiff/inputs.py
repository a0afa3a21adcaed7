"""What a user gives a `Generator`, checked, as arrays with one row for each image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff.errors import UserError, require

Shape = tuple[int, int, int]


def fields(
    conditioners: Sequence[Any], n: int | None, conditions: Mapping[str, Any], otherwise: int = 1
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Conditions as arrays with n rows, which of them are absent, and n.

    Args:
      conditioners: the `Conditioner` of the model, and those of others that are to see the same.
      n: the number of images; None to let a condition tell, and `otherwise` where none does.
      conditions: for each condition of the model one value per image, one value for all, or None.
    """
    parts = conditioners[0].parts
    for name in conditions:
        has = f"it has: {', '.join(parts) or 'none'}"
        require(name in parts, name, conditions[name], "the model has no such condition", has)
    missing = [name for name in parts if name not in conditions]
    if missing:
        raise UserError(
            f"{missing[0]}=: the model needs it. Fix: give {', '.join(missing)}, or None for no condition"
        )
    lengths = {name: len(value) for name, value in conditions.items() if np.ndim(value) > 0}
    if n is None:
        n = next(iter(lengths.values()), otherwise)
    require(n > 0, "n", n, "there would be no image", "give at least 1")
    examples = conditioners[0].example(1)
    values, absent = {}, {}
    for name, value in conditions.items():
        absent[name] = np.full(n, value is None)
        if value is None:
            values[name] = np.repeat(np.asarray(examples[name]), n, axis=0)
            continue
        if lengths.get(name, n) != n:
            raise UserError(
                f"{name}: {lengths[name]} values for {n} images. Fix: give one for each, or one for all"
            )
        values[name] = np.broadcast_to(np.asarray(value), (n, *np.shape(value)[1:]))
    for conditioner in conditioners:
        given = [name for name in conditioner.parts if conditions[name] is not None]
        conditioner.check({name: values[name] for name in given})
    return values, absent, n


def images(name: str, given: Any, n: int, shape: Shape, kind: type) -> np.ndarray:
    """n images of this shape and kind of number, from as many or from one for all."""
    array = np.asarray(given)
    fits = np.issubdtype(array.dtype, kind) and array.shape[-3:] == shape
    if not fits or array.shape[:-3] not in ((), (1,), (n,)):
        wanted = f"{n} images of {_by(shape)}, or one, as {kind.__name__}"
        raise UserError(
            f"{name}={array.dtype}{list(array.shape)}: it is not {wanted}. Fix: give such an array"
        )
    return np.broadcast_to(array, (n, *shape))


def mask(given: Any, n: int, shape: Shape) -> np.ndarray:
    """n masks that fit images of this shape, from as many or from one for all; [height, width] will do."""
    array = np.asarray(given)
    array = array[..., None] if array.ndim == 2 else array
    shapes = [(*batch, *shape[:2], last) for batch in ((), (1,), (n,)) for last in (1, shape[2])]
    require(
        array.dtype == bool and array.shape in shapes, "mask", f"{array.dtype}{list(array.shape)}",
        f"it does not say for each of {_by(shape[:2])} pixels whether to make it", "give such a bool array",
    )  # fmt: skip
    return np.broadcast_to(array, (n, *array.shape[-3:]))


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
