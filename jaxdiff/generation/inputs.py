"""Inputs of a `Generator`, validated and broadcast to arrays with one row per image."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxdiff.conditioning.condition import Condition
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.errors import UserError, expect

Shape = tuple[int, ...]


def fields(
    conditioners: Sequence[Conditioner],
    n: int | None,
    conditions: Mapping[str, Any],
    shape: Shape,
    default_n: int = 1,
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Conditions as arrays with n rows, masks of the rows in which each is absent, and n.

    Args:
      conditioners: of the model, and of other models that see the same conditions.
      n: the number of images. If None, the number of values of the first condition with several, else `default_n`.
      conditions: for each condition of the model one value per image, one value for all, or None for its null.
        Conditions with a default may be missing. A list with one value per image may hold None for some.
      shape: of the diffused data.
    """
    first = conditioners[0]
    _check_names(first, conditions)
    values, absent = _read(first, conditions)
    examples = {
        name: jax.tree.map(lambda leaf: leaf[0], tree)
        for name, tree in first.stored_example(1, shape).items()
    }
    if n is None:
        lengths = [_lengths(values[name], examples[name]) for name in conditions if name in values]
        n = next(itertools.chain(*lengths), default_n)
    expect(n > 0, "n", n, "at least one image", "give n > 0")
    rows = {
        name: _broadcast(name, values.get(name, examples[name]), examples[name], n)
        for name in first.conditions
    }
    for conditioner in conditioners:
        conditioner.check({name: rows[name] for name in conditioner.conditions if name in values})
    return rows, {name: np.broadcast_to(absent[name], n) for name in rows}, n


def check(conditioner: Conditioner, conditions: Mapping[str, Any], n: int, shape: Shape) -> None:
    """Raise `UserError` for a value that its condition cannot take; not for images, which may set the samples' size.

    Args:
      conditioner, conditions, n, shape: as for `fields`; conditions may be missing.
    """
    for name, value in conditions.items():
        condition = conditioner.conditions[name]
        if value is None or condition.image_shape(shape) is not None:
            continue
        example = jax.tree.map(lambda leaf: leaf[0], condition.stored_example(1, shape))
        values = conditioner.read(name, _without_gaps(value)[0])
        conditioner.check({name: _broadcast(name, values, example, n)})


def _check_names(conditioner: Conditioner, conditions: Mapping[str, Any]) -> None:
    """Raise `UserError` where a condition is unknown, is required and missing, or has no null and is None."""
    names = conditioner.conditions
    for name in conditions:
        fix = f"choose from {', '.join(names) or 'no conditions'}"
        expect(name in names, name, conditions[name], "a condition of the model", fix, "another name")
    missing = [name for name in names if name not in conditions and not conditioner.has_default(name)]
    if missing:
        raise UserError(
            f"{missing[0]}=: expected a value for this condition of the model, got none. "
            f"Fix: give {', '.join(missing)}, or None for no condition"
        )


def _read(
    conditioner: Conditioner, conditions: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The arrays of the conditions that are not None, and the images for which each condition is absent."""
    values, absent = {}, {}
    for name in conditioner.conditions:
        if name in conditions and conditions[name] is None:
            absent[name] = np.array(True)
        else:
            value, absent[name] = _without_gaps(conditions.get(name))
            values[name] = conditioner.read(name, value)
        if absent[name].any():
            expect(
                conditioner.has_null(name),
                name,
                None,
                "a value, since this condition has no null",
                "give it for every image",
            )
    return values, absent


def filled(
    conditioner: Conditioner, conditions: Mapping[str, Any], known: Any, mask: Any
) -> tuple[dict[str, Any], Any, Any]:
    """Conditions with the one that known images and a mask fill, such as `MaskedImage`, unless it is given.

    Returns:
      the conditions, and `known` and `mask`, or None if a condition has them now.
    """
    name = conditioner.only("known")
    if name is None or name in conditions or known is None or mask is None:
        return dict(conditions), known, mask
    array = np.asarray(mask)
    array = array[..., None] if array.ndim == 2 else array
    return {**conditions, name: conditioner.conditions[name].masked(known, array, name)}, None, None


def known(
    conditions: Mapping[str, Condition], values: Mapping[str, Any], absent: Mapping[str, Any], shape: Shape
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Pixels that conditions know of the images to generate, such as the opaque pixels of a `PartialImage`.

    Args:
      conditions: the conditions, see `Condition.known_pixels`.
      values, absent: as `fields` returns them; an absent condition has no known pixels.
      shape: of the images to generate.

    Returns:
      images [n, height, width, channels], and a mask [n, height, width, 1] that is True at the pixels to generate; or
      (None, None) if these are all pixels. If several conditions know a pixel, the first one has precedence.
    """
    images: Any = None
    mask: Any = None
    for name, condition in conditions.items():
        found = condition.known_pixels(values[name])
        if found is None:
            continue
        given, unknown = found
        unknown = unknown | absent[name][:, None, None, None]
        if unknown.all():
            continue
        expect(
            given.shape[1:] == shape,
            name,
            _by(given.shape[1:]),
            f"opaque pixels of {_by(shape)}, as the images have",
            "use a model for such images, or an image without transparency, which is a hint",
        )
        images = given if mask is None else np.where(mask, given, images)
        mask = unknown if mask is None else mask & unknown
    return images, mask


def _without_gaps(value: Any) -> tuple[Any, np.ndarray]:
    """A list with None for some images: with its first other value in their place, and a mask of these images."""
    if not isinstance(value, list | tuple) or all(item is not None for item in value):
        return value, np.array(False)
    stand_in = next((item for item in value if item is not None), None)
    expect(stand_in is not None, "conditions", value, "a value for some image", "give None for all", "none")
    absent = np.array([item is None for item in value])
    return [stand_in if item is None else item for item in value], absent


def size(
    conditioner: Conditioner,
    conditions: Mapping[str, Any],
    shape: Shape,
    data_shape: Shape,
    requested: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """(height, width) of the images to generate: as requested, or set by image conditions, or taken from `shape`.

    Args:
      conditioner, conditions: of the model, and what is given for them.
      shape, data_shape: of training's images, and of the data that they are diffused as.
      requested: size by the user.

    Raises:
      UserError: these sizes differ.
    """
    sizes: dict[str, tuple[int, int]] = {} if requested is None else {"image_size": requested}
    for name, value in conditions.items():
        condition = conditioner.conditions.get(name)
        own = None if condition is None or value is None else condition.image_shape(data_shape)
        if own is not None:
            leaves = jax.tree.leaves(conditioner.read(name, _without_gaps(value)[0]))
            image = max(leaves, key=np.ndim)
            if np.ndim(image) >= 3:  # otherwise the condition's check reports the error
                height, width = (
                    round(side * trained / reference)
                    for side, trained, reference in zip(
                        np.shape(image)[-3:-1], shape[:2], own[:2], strict=True
                    )
                )
                sizes[name] = (height, width)
    for name, found in sizes.items():
        first, agreed = next(iter(sizes.items()))
        expect(found == agreed, name, _by(found), f"{_by(agreed)}, the size of {first}", "choose one size")
    return next(iter(sizes.values()), (shape[0], shape[1]))


def _lengths(value: Any, example: Any) -> Iterator[int]:
    """Lengths of the arrays that have a batch axis; `example` has none."""
    for array, one in zip(jax.tree.leaves(value), jax.tree.leaves(example), strict=True):
        if np.ndim(array) > np.ndim(one):
            yield len(array)


def _broadcast(name: str, value: Any, example: Any, n: int) -> Any:
    """One row for each of n images, from as many or from one for all."""
    for length in _lengths(value, example):
        if length != n:
            expected = f"expected {n} values, one per image, got {length}"
            raise UserError(f"{name}: {expected}. Fix: give one for each image, or one for all")

    def rows(array: Any, one: Any) -> np.ndarray:
        array = np.asarray(array)
        return array if array.ndim > np.ndim(one) else np.broadcast_to(array, (n, *array.shape))

    return jax.tree.map(rows, value, example)


def images(name: str, given: Any, n: int, shape: Shape, kind: type) -> np.ndarray:
    """n images of this shape and number type, from as many or from one for all."""
    array = np.asarray(given)
    rank = len(shape)
    fits = np.issubdtype(array.dtype, kind) and array.shape[-rank:] == shape
    if not fits or array.shape[:-rank] not in ((), (1,), (n,)):
        got, numbers = f"{array.dtype}{list(array.shape)}", "floats" if kind is np.floating else kind.__name__
        raise UserError(
            f"{name}={got}: expected {numbers} {[n, *shape]}, or {list(shape)} for all, got {got}. "
            "Fix: give such an array"
        )
    return np.broadcast_to(array, (n, *shape))


def mask(given: Any, n: int, shape: Shape) -> np.ndarray:
    """n masks for images of this shape, from as many or from one for all, [height, width] or with channels."""
    array = np.asarray(given)
    array = array[..., None] if array.ndim == 2 else array
    shapes = [(*batch, *shape[:2], last) for batch in ((), (1,), (n,)) for last in (1, shape[2])]
    expect(
        array.dtype == bool and array.shape in shapes,
        "mask",
        f"{array.dtype}{list(array.shape)}",
        f"a bool for each of {_by(shape[:2])} pixels",
        "give such an array",
    )
    return np.broadcast_to(array, (n, *array.shape[-3:]))


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
