"""The picture of samples that training draws: what the model makes of classes, or of conditions from examples."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.conditioning.text import Text
from jaxdiff.data import images
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.text import ByteTokenizer
from jaxdiff.errors import UserError
from jaxdiff.generation import inputs
from jaxdiff.generation.generator import Generator

CLASSES, EXAMPLES, WORDS = 16, 8, 40
"""The most rows of each kind, and the most letters of a text beside one."""

Conditions = Mapping[str, Any]


def conditions(conditioner: Any, data: Pipeline, held_out: Pipeline | None, seed: int) -> Conditions | None:
    """What a model with conditions other than the class is to be shown: those of some examples; None if it has none.

    Held-out examples come first. Where their fields are made by transforms, those are applied.

    Raises:
      UserError: the examples lack a condition.
    """
    needed = [name for name in conditioner.conditions if not conditioner.has_default(name)]
    if set(needed) <= {"label"}:
        return None
    pipeline = data if held_out is None else held_out
    batch = next(iter(pipeline.epoch(EXAMPLES)))
    if not set(needed) <= set(batch):
        batch = next(iter(pipeline.batches(EXAMPLES, seed)))
    for name in needed:
        if name not in batch:
            raise UserError(
                f"config.sample_every: samples are drawn for conditions of examples, and these lack {name}; "
                f"they have {', '.join(batch)}. Fix: let the data give it, or use sample_every=0"
            )
    return {name: batch[name] for name in needed}


def sample_grid(generator: Generator, given: Conditions | None, columns: int = 10) -> np.ndarray:
    """One uint8 picture of samples.

    With `given`, a row for each example: its conditions that are images, then samples; texts and classes stand to the
    left. Without, for a class-conditional model a row for each class (the first 16), labelled.
    """
    parts = generator.denoiser.conditioner.conditions
    if given is not None:
        return _by_example(generator, given, columns)
    if "label" not in parts:
        return images.grid(generator(columns * columns), columns)
    rows = min(parts["label"].num_classes, CLASSES)
    labels = [row for row in range(rows) for _ in range(columns)]
    return images.grid(generator(label=labels), columns, row_labels=[str(row) for row in range(rows)])


def _by_example(generator: Generator, given: Conditions, columns: int) -> np.ndarray:
    conditioner = generator.denoiser.conditioner
    # Examples may be larger than training's crops.
    shape = (*inputs.size(conditioner, given, generator.image_shape), generator.image_shape[2])
    beside, words = [], []
    for name, values in given.items():
        part = conditioner.conditions[name]
        if inputs.image_of(part, shape) is not None:
            pictures = part.read(values) if hasattr(part, "known") else values
            beside.append([shown(pixels, shape) for pixels in pictures])
        elif (lines := _lines(conditioner.conditions[name], values)) is not None:
            words.append(lines)
    rows = len(next(iter(given.values())))
    count = max(1, columns - len(beside))
    each: dict[str, Any] = {name: np.repeat(values, count, axis=0) for name, values in given.items()}
    made = generator(rows * count, **each)
    cells = [
        [*(column[row] for column in beside), *made[row * count : (row + 1) * count]] for row in range(rows)
    ]
    labels = [", ".join(lines[row] for lines in words) for row in range(rows)] if words else None
    return images.grid(np.stack([cell for row in cells for cell in row]), len(cells[0]), row_labels=labels)


def _lines(part: Any, values: Any) -> list[str] | None:
    """A line for each example, where its condition is a text or a whole number."""
    array = np.asarray(values)
    if isinstance(part, Text) and array.ndim == 2:
        array = np.array([ByteTokenizer(part.length).decode(ids) for ids in array])
    if array.ndim != 1 or array.dtype.kind not in "iuUSO":
        return None
    texts = (
        text.decode(errors="replace") if isinstance(text, bytes) else str(text) for text in array.tolist()
    )
    return [text if len(text) <= WORDS else f"{text[: WORDS - 3]}..." for text in texts]


def shown(pixels: np.ndarray, shape: inputs.Shape) -> np.ndarray:
    """A condition's image beside samples of a shape: scaled to their size, and grey or coloured as they are.

    A channel more than these have is alpha, or a mask: what lies under it is shown as it is.
    """
    pixels = images.to_uint8(pixels[None])[0] if np.issubdtype(pixels.dtype, np.floating) else pixels
    rows, columns = (
        np.arange(new) * old // new for new, old in zip(shape[:2], pixels.shape[:2], strict=True)
    )
    scaled = pixels[rows][:, columns]
    scaled = scaled[..., :-1] if scaled.shape[2] == shape[2] + 1 else scaled
    if scaled.shape[2] == shape[2]:
        return scaled
    grey = scaled[..., :3].mean(axis=2, keepdims=True).round().astype(np.uint8)
    return np.broadcast_to(grey, shape)
