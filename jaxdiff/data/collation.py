"""Collation: examples of one shape and type become a batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdiff.data.sources import Example
from jaxdiff.errors import UserError


def collate(
    examples: Sequence[Example], image_shape: tuple[int | None, ...] | None, num_classes: int | None
) -> Example:
    """Check shapes and labels, then stack examples into a batch; without `image_shape`, the first one sets it."""
    if isinstance(examples[0].get("image"), np.ndarray):
        _check_images(examples, image_shape)
    batch = {name: _stack(name, examples) for name in examples[0]}
    if num_classes is not None:
        bad = np.flatnonzero((batch["label"] < 0) | (batch["label"] >= num_classes))
        if bad.size:
            raise UserError(
                f"index={batch['index'][bad[0]]}: expected a label in [0, {num_classes - 1}], got "
                f"{batch['label'][bad[0]]}. Fix: use a split with labels, or label_key=None"
            )
    return batch


def _check_images(examples: Sequence[Example], image_shape: tuple[int | None, ...] | None) -> None:
    first = examples[0]["image"]
    expected = first.shape if image_shape is None or None in image_shape else image_shape
    for example in examples:
        image = example["image"]
        if image.shape != expected or image.dtype != first.dtype:
            raise UserError(
                f"index={example['index']}: expected an image of {first.dtype} {expected}, got {image.dtype} "
                f"{image.shape}. Fix: use a data set of one image size, or a transform that crops or resizes"
            )


def _stack(name: str, examples: Sequence[Example]) -> Any:
    """One field of all examples: an array, or a tree of arrays."""
    import jax  # configs import this package without it

    def stack(*parts: Any) -> np.ndarray:
        return _stack_arrays(name, examples, [np.asarray(part) for part in parts])

    values = (example[name] for example in examples)
    return jax.tree.map(stack, *values, is_leaf=lambda value: isinstance(value, list | tuple))


def _stack_arrays(name: str, examples: Sequence[Example], values: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays of all examples as one. Differing shapes and dtypes are errors: NumPy would convert dtypes silently."""
    for example, value in zip(examples, values, strict=True):
        if (value.shape, value.dtype.type) != (values[0].shape, values[0].dtype.type):
            raise UserError(
                f"{name}={value.dtype}{list(value.shape)}: expected {values[0].dtype}{list(values[0].shape)} as in "
                f"example {examples[0]['index']}, got {value.dtype}{list(value.shape)} in example {example['index']}. "
                "Fix: use one shape and dtype"
            )
    return np.stack(values)
