"""What a user gives a `Generator`, checked, as arrays with one row for each image."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxdiff.errors import UserError, require

Shape = tuple[int, int, int]


def fields(
    conditioners: Sequence[Any],
    n: int | None,
    conditions: Mapping[str, Any],
    shape: Shape,
    otherwise: int = 1,
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Conditions as arrays with n rows, which of them are absent, and n.

    Args:
      conditioners: the `Conditioner` of the model, and those of others that are to see the same.
      n: the number of images; None to let a condition tell, and `otherwise` where none does.
      conditions: for each condition of the model one value per image, one value for all, or None. Those that have a
        default may be missing. A list for the images may hold None for some of them.
      shape: of the images that are to be made.
    """
    first, parts = conditioners[0], conditioners[0].conditions
    for name in conditions:
        has = f"it has: {', '.join(parts) or 'none'}"
        require(name in parts, name, conditions[name], "the model has no such condition", has)
    missing = [name for name in parts if name not in conditions and not first.has_default(name)]
    if missing:
        raise UserError(
            f"{missing[0]}=: the model needs it. Fix: give {', '.join(missing)}, or None for no condition"
        )
    absent = [name for name, value in conditions.items() if value is None]
    for name in absent:
        require(first.has_null(name), name, None, "the model cannot do without it", "give it")
    given, lacking = {}, {}
    for name in parts:
        if name not in absent:
            value, lacking[name] = _without_gaps(conditions.get(name))
            gaps = lacking[name] is not None and not first.has_null(name)
            require(not gaps, name, None, "the model cannot do without it", "give it for every image")
            given[name] = first.read(name, value)
    examples = {
        name: jax.tree.map(lambda leaf: leaf[0], tree) for name, tree in first.example(1, shape).items()
    }
    if n is None:
        lengths = [_lengths(given[name], examples[name]) for name in conditions if name in given]
        n = next(itertools.chain(*lengths), otherwise)
    require(n > 0, "n", n, "there would be no image", "give at least 1")
    values = {name: _spread(name, given.get(name, examples[name]), examples[name], n) for name in parts}
    for conditioner in conditioners:
        conditioner.check({name: values[name] for name in conditioner.conditions if name in given})
    missing_in = {name: np.full(n, name in absent) for name in parts}
    missing_in |= {name: rows for name, rows in lacking.items() if rows is not None}
    return values, missing_in, n


def known(
    parts: Mapping[str, Any], values: Mapping[str, Any], absent: Mapping[str, Any], shape: Shape
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """What conditions know of the images that are to be made, such as the opaque pixels of a `PartialImage`.

    Args:
      parts: the conditions; a part says it by ``known(values) -> (images, mask)``.
      values, absent: as `fields` gives them; nothing is known of images for which the condition is absent.
      shape: of the images that are to be made.

    Returns:
      images [n, height, width, channels], and a mask [n, height, width, 1] that is True where pixels are to be made; or
      (None, None) where that is everywhere. If several conditions know a pixel, the first one has it.
    """
    whole: Any = None
    made: Any = None
    for name, part in parts.items():
        if hasattr(part, "known"):
            given, unknown = part.known(values[name])
            unknown = unknown | absent[name][:, None, None, None]
            if not unknown.all():
                fits = given.shape[1:] == shape
                fix = "use a model for such images, or a picture without transparency, which is a hint"
                why = f"its opaque pixels cannot be kept in images of {_by(shape)}"
                require(fits, name, _by(given.shape[1:]), why, fix)
                whole = given if made is None else np.where(made, given, whole)
                made = unknown if made is None else made & unknown
    return whole, made


def _without_gaps(value: Any) -> tuple[Any, np.ndarray | None]:
    """A list with None for some images: with the first other value in their place, and where they are."""
    if not isinstance(value, list | tuple) or all(item is not None for item in value):
        return value, None
    gaps = np.array([item is None for item in value])
    stand_in = next((item for item in value if item is not None), None)
    require(stand_in is not None, "conditions", value, "no image has a value", "give None for all")
    return [stand_in if item is None else item for item in value], gaps


def image_of(part: Any, shape: Shape) -> jax.ShapeDtypeStruct | None:
    """The dummy image [1, height, width, channels] that a condition takes for images of this shape, if it takes any."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda: part.example(1, shape)))
    return next((leaf for leaf in leaves if leaf.ndim == 4), None)


def size(
    conditioner: Any, conditions: Mapping[str, Any], shape: Shape, asked: tuple[int, int] | None = None
) -> tuple[int, int]:
    """(height, width) of the images that are made: as asked for, or as given images want it, or that of `shape`.

    Raises:
      UserError: what is given and what is asked for want different sizes.
    """
    found: dict[str, tuple[int, int]] = {} if asked is None else {"image_size": (asked[0], asked[1])}
    for name, value in conditions.items():
        part = conditioner.conditions.get(name)
        dummy = None if part is None or value is None else image_of(part, shape)
        if dummy is not None:
            given = jax.tree.leaves(conditioner.read(name, _without_gaps(value)[0]))
            array = max(given, key=np.ndim)
            if np.ndim(array) >= 3:  # or the condition will say what it lacks
                sides = zip(np.shape(array)[-3:-1], shape[:2], dummy.shape[1:3], strict=True)
                height, width = (round(side * whole / own) for side, whole, own in sides)
                found[name] = (height, width)
    for name, wanted in found.items():
        first, agreed = next(iter(found.items()))
        require(
            wanted == agreed, name, _by(wanted), f"{first} is for images of {_by(agreed)}", "choose one size"
        )
    return next(iter(found.values()), shape[:2])


def _lengths(value: Any, example: Any) -> Iterator[int]:
    """Of the arrays that hold something for each image: they have an axis more than what is said of one."""
    for array, one in zip(jax.tree.leaves(value), jax.tree.leaves(example), strict=True):
        if np.ndim(array) > np.ndim(one):
            yield len(array)


def _spread(name: str, value: Any, example: Any, n: int) -> Any:
    """One row for each of n images, from as many or from one for all."""
    for length in _lengths(value, example):
        if length != n:
            raise UserError(f"{name}: {length} values for {n} images. Fix: give one for each, or one for all")

    def rows(array: Any, one: Any) -> np.ndarray:
        array = np.asarray(array)
        return array if array.ndim > np.ndim(one) else np.broadcast_to(array, (n, *array.shape))

    return jax.tree.map(rows, value, example)


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
