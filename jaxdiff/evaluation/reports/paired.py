"""What evaluations share whose images must agree with a given one: inputs, samples, and examples to look at."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw

import jaxdiff
from jaxdiff.errors import require
from jaxdiff.evaluation.features.patches import Patches
from jaxdiff.evaluation.plots.drawing import (
    GAP,
    GREY,
    INK,
    PAPER,
    below,
    beside,
    curves_block,
    font,
    framed,
    table_block,
)
from jaxdiff.evaluation.protocols import Conditions, EvaluationInputs

CELL = 128  # pixels that an example's side should have at least, where it is shown
SHOWN_SAMPLES = 3  # of one input


@runtime_checkable
class Restoration(Protocol):
    """What the two evaluations have in common."""

    @property
    def condition(self) -> str: ...

    @property
    def samples_per_input(self) -> int: ...

    @property
    def guidances(self) -> tuple[float, ...]: ...

    @property
    def seed(self) -> int: ...

    @property
    def features(self) -> Patches: ...


def evenly(groups: Integer[np.ndarray, "count"], n: int) -> Integer[np.ndarray, "chosen"]:
    """At most n rows in order, evenly spread over all, and over each group in proportion to its size."""
    order = np.argsort(groups, kind="stable")
    chosen = np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int)
    return np.sort(order[chosen])


def given(subject: EvaluationInputs, condition: str, rows: Integer[np.ndarray, "n"]) -> dict[str, Any]:
    """All conditions of the model, as these rows of the test examples have them.

    Raises:
      UserError: `condition` is none of the model's, or the test examples lack one.
    """
    known = condition in subject.conditions
    require(known, "condition", condition, f"the model's are {subject.conditions}", "name one of these")
    for name in subject.conditions:
        fix = "let test_data make the field"
        require(name in subject.test, name, sorted(subject.test), "test examples have no such field", fix)
    return {name: subject.test[name][rows] for name in subject.conditions}


def samples(
    evaluation: Restoration, subject: EvaluationInputs, conditions: Conditions, shape: tuple[int, ...], k: int
) -> dict[float, UInt8[np.ndarray, "k n height width channels"]]:
    """k sets of samples of the given shape [n, height, width, channels] at each guidance, from the same noise."""
    found = {}
    for guidance in sorted({float(subject.guidance), *map(float, evaluation.guidances)}):
        sets = [subject.generate(conditions, evaluation.seed + i, guidance) for i in range(k)]
        for images in sets:
            if images.dtype != np.uint8 or images.shape != shape:
                raise ValueError(f"generate gave {images.dtype} {images.shape}, expected uint8 {shape}")
        found[guidance] = np.stack(sets)
    return found


def ratio(baseline: float, model: float) -> float | None:
    """How many times smaller than the baseline's the model's distance is; None where it is 0."""
    return baseline / model if model > 0 else None


def stated(evaluation: Restoration, subject: EvaluationInputs, n: int) -> dict[str, Any]:
    """Under which conditions values hold."""
    return {
        "n": n,
        "seed": evaluation.seed,
        "samples_per_input": evaluation.samples_per_input,
        "features": evaluation.features.name,
        "condition": evaluation.condition,
        "test_images": len(subject.test["image"]),
        "train_images": len(subject.train["image"]),
        "version": jaxdiff.__version__,
        **subject.settings,
    }


def curves(subject: EvaluationInputs) -> dict[str, list[float]] | None:
    """The losses by noise level as plain numbers."""
    losses = subject.noise_losses
    if losses is None:
        return None
    return {name: [float(value) for value in values] for name, values in losses.items()}


def made_with(conditions: Mapping[str, Any]) -> str:
    """Sampler, steps and the like in one line."""
    named = {name: conditions[name] for name in ("sampler", "grid", "steps", "step") if name in conditions}
    return ", ".join(f"{name} {value}" for name, value in named.items())


def number(value: float | None) -> str:
    """Three figures, and a hyphen for what there is not."""
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def drawn(
    columns: Mapping[str, np.ndarray],
    names: Sequence[str],
    table: Sequence[Sequence[str]],
    caption: Sequence[str],
    losses: Mapping[str, Sequence[float]] | None,
) -> UInt8[np.ndarray, "height width 3"]:
    """The picture of a report: examples, beside the figures and the losses."""
    side = [table_block(table, caption)]
    if losses:
        side.append(curves_block(losses))
    return np.asarray(framed(beside([examples_block(columns, names), below(side)])))


def shown(
    found: Mapping[float, np.ndarray], rows: Integer[np.ndarray, "m"]
) -> dict[str, UInt8[np.ndarray, "m height width channels"]]:
    """Samples of these inputs as columns of examples: the first `SHOWN_SAMPLES` at each guidance."""
    return {
        f"guidance {guidance:g}" + (f" #{i + 1}" if len(images) > 1 else ""): images[i, rows]
        for guidance, images in found.items()
        for i in range(min(SHOWN_SAMPLES, len(images)))
    }


def examples_block(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> Image.Image:
    """A row for each example, by name, and a column for each kind of image uint8 [n, height, width, channels].

    Pixels are enlarged to whole squares. A column of small images has larger ones.
    """
    height, width = np.max([images.shape[1:3] for images in columns.values()], axis=0)
    scale = max(1, -(-CELL // int(max(height, width))))
    cell_height, cell_width = int(height) * scale + GAP, int(width) * scale + GAP
    left = 8 + int(max((font(14).getlength(name) for name in names), default=0))
    block = Image.new("RGB", (left + len(columns) * cell_width, 52 + len(names) * cell_height), PAPER)
    draw = ImageDraw.Draw(block)
    draw.text((0, 0), "Examples", INK, font(18))
    for row, name in enumerate(names):
        draw.text((left - 8, 52 + row * cell_height + cell_height // 2), name, GREY, font(14), anchor="rm")
    for column, (title, images) in enumerate(columns.items()):
        x = left + column * cell_width
        draw.text((x + cell_width // 2, 44), title, INK, font(14), anchor="ms")
        times = min(int(height) // images.shape[1], int(width) // images.shape[2]) * scale
        for row, image in enumerate(images):
            colour = image if image.shape[-1] == 3 else image[..., :1].repeat(3, axis=-1)
            large = Image.fromarray(np.ascontiguousarray(colour.repeat(times, axis=0).repeat(times, axis=1)))
            block.paste(large, (x, 52 + row * cell_height))
    return block
