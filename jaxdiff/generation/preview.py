"""Sample grids of training: samples of each class, or of the conditions of some examples."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.data import images
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.errors import UserError
from jaxdiff.generation import inputs
from jaxdiff.generation.generator import Generator

CLASSES, EXAMPLES, CHARACTERS = 16, 8, 40
"""Most rows of classes and of examples, and most characters of a row's label."""

Conditions = Mapping[str, Any]


def conditions(
    conditioner: Conditioner, data: Pipeline, held_out: Pipeline | None, seed: int
) -> Conditions | None:
    """The conditions of some examples, to draw samples for; None if a class label is the only condition, or none is.

    Held-out examples are preferred. If transforms provide the fields, they are applied.

    Raises:
      UserError: the examples lack a condition.
    """
    required = [name for name in conditioner.conditions if not conditioner.has_default(name)]
    label = conditioner.only("label")
    if set(required) <= {label}:
        return None
    pipeline = data if held_out is None else held_out
    batch = next(iter(pipeline.epoch(EXAMPLES)))
    if not set(required) <= set(batch):
        batch = next(iter(pipeline.batches(EXAMPLES, seed)))
    for name in required:
        if name not in batch:
            raise UserError(
                f"config.sample_every: expected examples with {name}, to draw samples for, got {', '.join(batch)}. "
                "Fix: let the data provide it, or use sample_every=0"
            )
    return {name: batch[name] for name in required}


def sample_grid(generator: Generator, given: Conditions | None, columns: int = 10) -> np.ndarray:
    """A grid of samples as one uint8 image.

    With `given`, a row for each example: its conditions that are images, then samples; texts and classes label the
    row. Without, for a class-conditional model a labelled row for each class (the first 16).
    """
    conditioner = generator.denoiser.conditioner
    if given is not None:
        return _grid_of_examples(generator, given, columns)
    label = conditioner.only("label")
    if label is None:
        return images.grid(generator(columns * columns), columns)
    rows = np.arange(min(conditioner.conditions[label].classes or 1, CLASSES))
    classes: dict[str, Any] = {label: np.repeat(rows, columns)}
    names = conditioner.conditions[label].describe(rows) or map(str, rows)
    return images.grid(generator(**classes), columns, row_labels=list(map(shorten, names)))


def _grid_of_examples(generator: Generator, given: Conditions, columns: int) -> np.ndarray:
    conditioner = generator.denoiser.conditioner
    # Examples may be larger than the crops of training.
    shape = (*generator.size(given), generator.image_shape[2])
    image_columns, row_labels = [], []
    for name, values in given.items():
        condition = conditioner.conditions[name]
        pixels, lines = condition.images(values), condition.describe(values)
        if pixels is not None:
            image_columns.append([fit(image, shape) for image in pixels])
        elif lines is not None:
            row_labels.append([shorten(line) for line in lines])
    rows = len(next(iter(given.values())))
    count = max(1, columns - len(image_columns))
    repeated: dict[str, Any] = {name: np.repeat(values, count, axis=0) for name, values in given.items()}
    samples = generator(rows * count, **repeated)
    cells = [
        image
        for row in range(rows)
        for image in (*(column[row] for column in image_columns), *samples[row * count : (row + 1) * count])
    ]
    labels = [", ".join(lines[row] for lines in row_labels) for row in range(rows)] if row_labels else None
    return images.grid(np.stack(cells), len(cells) // rows, row_labels=labels)


def shorten(text: str) -> str:
    """A text of at most `CHARACTERS` characters."""
    return text if len(text) <= CHARACTERS else f"{text[: CHARACTERS - 3]}..."


def fit(image: np.ndarray, shape: inputs.Shape) -> np.ndarray:
    """A condition's image, scaled to the height and width of samples, with as many channels as they have.

    A channel more than the samples have is alpha, or a mask, and is left out.
    """
    image = images.to_uint8(image[None])[0] if np.issubdtype(image.dtype, np.floating) else image
    rows, columns = (np.arange(new) * old // new for new, old in zip(shape[:2], image.shape[:2], strict=True))
    scaled = image[rows][:, columns]
    scaled = scaled[..., :-1] if scaled.shape[2] == shape[2] + 1 else scaled
    if scaled.shape[2] == shape[2]:
        return scaled
    grey = scaled[..., :3].mean(axis=2, keepdims=True).round().astype(np.uint8)
    return np.broadcast_to(grey, shape)
