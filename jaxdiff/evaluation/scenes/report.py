"""Evaluation of a text-to-image model on scenes: do samples show what their captions ask for, and are they new?

A share of right samples means little alone, so it stands between two others. Real test images, read by the same
judge, are what a perfect model would reach. Samples that were made from the caption of another scene are what a model
would reach that does not read: chance.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Integer, UInt8
from PIL import Image, ImageDraw

import jaxdiff
from jaxdiff.data.text import ByteTokenizer
from jaxdiff.errors import require
from jaxdiff.evaluation.metrics import memorization as diversity
from jaxdiff.evaluation.metrics import precision_recall as neighbours
from jaxdiff.evaluation.plots.drawing import (
    GREY,
    INK,
    PAPER,
    below,
    beside,
    curves_block,
    font,
    framed,
    table_block,
    thumbnail,
    wrapped,
)
from jaxdiff.evaluation.protocols import EvaluationInputs, Examples, Report
from jaxdiff.evaluation.scenes.classifier import (
    ATTRIBUTES,
    FIELDS,
    FittedSceneJudge,
    SceneClassifier,
    Scenes,
    in_reading_order,
)

FEATURES = "means of 2x2 pixels in [0, 1]"
LEVEL = 0.95
RIGHT, WRONG = (0, 158, 115), (213, 94, 0)  # told apart by colour-blind eyes too (Okabe & Ito)
COLUMNS, ROWS, CELL, COLUMN = 6, 4, 96, 134

Right = Mapping[str, np.ndarray]
"""What is right of each image, bool [n]: each of `ATTRIBUTES`, and "all"."""


@dataclasses.dataclass(frozen=True)
class SceneEvaluation:
    """What to measure, and on how many samples.

    Args:
      n: number of samples at each guidance: one for each of the first `n` test examples, by its conditions.
      guidances: guidance scales to sample at, besides 1 (off) and the one of the recipe.
      seed: of the samples' noise, and of whose caption each gets where captions are shuffled.
      judge: reads images; it learns from the training scenes.
      text_field: the condition that holds the caption, as ids of `ByteTokenizer`.
    """

    n: int = 500
    guidances: tuple[float, ...] = ()
    seed: int = 0
    judge: SceneClassifier = dataclasses.field(default_factory=SceneClassifier)
    text_field: str = "text"

    def __post_init__(self):
        require(self.n > 1, "n", self.n, "captions cannot be shuffled", "take 500")

    def __call__(self, subject: EvaluationInputs) -> Report:
        """Sample, judge, and draw.

        Raises:
          UserError: examples lack the attributes of scenes or the caption; there are fewer than `n` of them.
        """
        test = self._examples(subject)
        asked = {name: test[name] for name in subject.conditions}
        others = shuffled(test, self.seed)
        guidances = sorted({1.0, float(subject.guidance), *map(float, self.guidances)})
        samples = {guidance: self._generate(subject, asked, guidance) for guidance in guidances}
        swapped = {name: values[others] for name, values in asked.items()}
        unread = self._generate(subject, swapped, float(subject.guidance))

        judge = self.judge.fit(subject.train["image"], subject.train)
        scoring = _Scoring(judge, subject.train["image"], test)
        stated = {
            "n": self.n,
            "seed": self.seed,
            "judge": self.judge.name,
            "features": FEATURES,
            "version": jaxdiff.__version__,
            **subject.settings,
        }
        right = {guidance: judge(images, test) for guidance, images in samples.items()}
        values = {
            "samples": [
                {
                    "guidance": guidance,
                    **scoring.quality(images, right[guidance]),
                    "conditions": {**stated, "guidance": guidance, "captions": "of the test examples"},
                }
                for guidance, images in samples.items()
            ],
            "shuffled": {
                **shares(judge(unread, test), test["count"]),
                "conditions": {**stated, "guidance": float(subject.guidance), "captions": "of other scenes"},
            },
            "real": {
                **scoring.quality(test["image"], judge(test["image"], test)),
                "conditions": {**stated, "images": "real test images", "captions": "their own"},
            },
            "real_shuffled": {
                **shares(judge(test["image"][others], test), test["count"]),
                "conditions": {**stated, "images": "real test images", "captions": "of other scenes"},
            },
            "noise_losses": subject.noise_losses
            and {name: [float(loss) for loss in losses] for name, losses in subject.noise_losses.items()},
        }
        table, caption = figures(values), conditions(values)
        side = [table_block(table, caption)]
        if values["noise_losses"] is not None:
            side.append(curves_block(values["noise_losses"]))
        texts = _texts(test[self.text_field][: COLUMNS * ROWS])
        shown = float(subject.guidance)
        panel = _panel(f"Samples at guidance {shown:g}", samples[shown], texts, right[shown])
        return Report(values, table, caption, np.asarray(framed(beside([panel, below(side)]))))

    def _examples(self, subject: EvaluationInputs) -> Examples:
        """The test examples whose conditions are asked for."""
        for examples in (subject.train, subject.test):
            lacking = [name for name in FIELDS if name not in examples]
            fix = f"judge runs on scenes, read with Tfds(..., fields={FIELDS})"
            require(not lacking, "evaluation", type(self).__name__, f"examples have no {lacking}", fix)
        why, fix = "examples have no such field", "name the field of captions"
        require(self.text_field in subject.test, "text_field", self.text_field, why, fix)
        there = len(subject.test["image"])
        require(self.n <= there, "n", self.n, f"there are {there} test examples", f"take {there} at most")
        return {name: values[: self.n] for name, values in subject.test.items()}

    def _generate(
        self, subject: EvaluationInputs, asked: Examples, guidance: float
    ) -> UInt8[np.ndarray, "n height width 3"]:
        images = subject.generate(asked, self.seed, guidance)
        expected = (self.n, *subject.test["image"].shape[1:])
        if images.dtype != np.uint8 or images.shape != expected:
            raise ValueError(f"generate gave {images.dtype} {images.shape}, expected uint8 {expected}")
        return images


class _Scoring:
    """All that scoring needs to know of the real images."""

    def __init__(self, judge: FittedSceneJudge, train_images: np.ndarray, test: Examples):
        self.judge, self.train_images, self.test = judge, train_images, test
        self.train = _features(train_images)
        self.real = _features(test["image"])
        self.distances, _ = neighbours.nearest(self.real, self.train, 2)
        scenes = _scenes_as_numbers(test)
        counts = np.bincount(scenes)
        self.repeated = counts[scenes] > 1
        self.scenes = scenes[self.repeated]

    def quality(self, images: np.ndarray, right: Right) -> dict[str, Any]:
        """Every measure of one set of images, real or not."""
        features = _features(images)
        distances, _ = neighbours.nearest(features, self.train, 2)
        return {
            **shares(right, self.test["count"]),
            "memorisation": {
                **diversity.memorisation(distances, self.distances),
                "exact_copies": float(neighbours.members(images, self.train_images).mean()),
            },
            "spread": self._spread(features),
        }

    def _spread(self, features: np.ndarray) -> float | None:
        """Variance of images of the same scene, over that of the real ones; None where no scene is asked for twice."""
        means = []
        for values in (features, self.real):
            variances = diversity.class_variances(values[self.repeated], self.scenes)
            means.append(np.mean(list(variances.values())) if variances else 0.0)
        return float(means[0] / means[1]) if means[1] > 0 else None


def shares(right: Right, counts: Integer[np.ndarray, "n"]) -> dict[str, Any]:
    """The share of right images: by attribute, with an interval, and by the number of digits that were asked for."""
    low, high = wilson(int(right["all"].sum()), len(counts))
    return {
        "right": {name: float(right[name].mean()) for name in ("all", *ATTRIBUTES)},
        "interval": {"low": low, "high": high, "level": LEVEL, "method": "Wilson"},
        "right_by_count": {
            str(count): float(right["all"][counts == count].mean()) for count in np.unique(counts)
        },
    }


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Bounds of a probability of which `n` trials are known (Wilson 1927): they never leave [0, 1]."""
    from scipy.special import ndtri

    z = float(ndtri((1 + level) / 2))
    share = successes / n
    middle = share + z**2 / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = ((middle + sign * reach) / (1 + z**2 / n) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)  # rounding would leave it


def shuffled(scenes: Scenes, seed: int) -> Integer[np.ndarray, "n"]:
    """A permutation that gives every example the place of one that shows another scene.

    Equal scenes are put side by side, in a random order, and all move on by as many places as the most frequent has.

    Raises:
      UserError: more than half of the scenes are the same.
    """
    numbers = _scenes_as_numbers(scenes)
    generator = np.random.default_rng(seed)
    most, n = int(np.bincount(numbers).max()), len(numbers)
    require(2 * most <= n, "n", n, f"{most} of these captions ask for the same scene", "take more captions")
    ranks = generator.permutation(numbers.max() + 1)[numbers]
    order = np.lexsort((generator.random(n), ranks))
    others = np.empty(n, int)
    others[order] = np.roll(order, -most)
    return others


def figures(values: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The headline as rows of words: a name, the real images, each guidance, and the shuffled captions."""
    real, samples, unread = values["real"], values["samples"], values["shuffled"]
    columns = [real, *samples, unread]
    rows: list[tuple[str, ...]] = [
        ("", "real", *(f"guidance {row['guidance']:g}" for row in samples), "shuffled")
    ]
    rows.append(("all as asked", *(_number(column["right"]["all"]) for column in columns)))
    for name, label in (("low", "at least"), ("high", "at most")):
        rows.append((f"  {label} ({LEVEL:.0%})", *(_number(column["interval"][name]) for column in columns)))
    for name in ATTRIBUTES:
        rows.append((f"{name} as asked", *(_number(column["right"][name]) for column in columns)))
    for count in real["right_by_count"]:
        label = f"all, of {count} digit{'s' * (count != '1')}"
        rows.append((label, *(_number(column["right_by_count"][count]) for column in columns)))
    for name, label in (("ratio", "distance to training set / test's"), ("exact_copies", "exact copies")):
        rows.append((label, *(_number(row["memorisation"][name]) for row in (real, *samples)), "-"))
    rows.append(("spread of equal scenes / real", *(_number(row["spread"]) for row in (real, *samples)), "-"))
    return rows


def conditions(values: Mapping[str, Any]) -> list[str]:
    """Under which conditions the figures hold, in a few lines."""
    shuffled = values["shuffled"]["conditions"]
    known = ("n", "guidance", "seed", "judge", "features", "version", "captions")
    chance = ", ".join(f"{name} {_number(share)}" for name, share in values["real_shuffled"]["right"].items())
    lines = [
        f"{shuffled['n']} captions of test examples, seed {shuffled['seed']}; distances: {shuffled['features']}",
        f"real: the test images of these captions. Judge: {shuffled['judge']}",
        f"shuffled: samples made from captions of other scenes, at guidance {shuffled['guidance']:g}. "
        f"Real images of other scenes: {chance}",
    ]
    made = [
        f"{name} {value}"
        for name, value in shuffled.items()
        if name not in known and isinstance(value, str | int | float)
    ]
    return lines + ([", ".join(made)] if made else [])


def _scenes_as_numbers(scenes: Scenes) -> Integer[np.ndarray, "n"]:
    """A number for each scene, the same for the same one in other words: "a above b", "b below a"."""
    seen = in_reading_order(scenes)
    rows = np.column_stack([seen.count, seen.stacked, seen.digits, seen.colours])
    return np.unique(rows, axis=0, return_inverse=True)[1].ravel()


def _features(images: np.ndarray) -> Float64[np.ndarray, "n d"]:
    """Images at half their size: a shift by a pixel is a small distance, and all take a quarter of the time."""
    n, height, width, channels = images.shape
    blocks = images.reshape(n, height // 2, 2, width // 2, 2, channels) / 255.0
    return blocks.mean(axis=(2, 4)).reshape(n, -1)


def _texts(ids: np.ndarray) -> list[str]:
    return [ByteTokenizer(ids.shape[1]).decode(row) for row in ids]


def _panel(title: str, images: np.ndarray, texts: Sequence[str], right: Right) -> Image.Image:
    """The first samples in frames of two colours, with what was asked for, and what is not so."""
    line, top, edge = 14, 34, 3
    notes = [
        [(part, INK) for part in wrapped(text, 11, COLUMN - 12)]
        + [(part, WRONG) for part in wrapped(_faults(right, i), 11, COLUMN - 12) if part]
        for i, text in enumerate(texts)
    ]
    height = CELL + 2 * edge + 6 + line * max(map(len, notes)) + 12
    rows = -(-len(texts) // COLUMNS)
    panel = Image.new("RGB", (COLUMN * min(COLUMNS, len(texts)), top + rows * height), PAPER)
    draw = ImageDraw.Draw(panel)
    draw.text((0, 0), title, INK, font(18))
    draw.text((panel.width - 12, 4), "green: as asked, orange: not", GREY, font(12), anchor="ra")
    for i, lines in enumerate(notes):
        x, y = COLUMN * (i % COLUMNS), top + height * (i // COLUMNS)
        box = (x, y, x + CELL + 2 * edge - 1, y + CELL + 2 * edge - 1)
        draw.rectangle(box, RIGHT if right["all"][i] else WRONG)
        panel.paste(thumbnail(images[i], CELL), (x + edge, y + edge))
        for j, (text, colour) in enumerate(lines):
            draw.text((x, y + CELL + 2 * edge + 6 + j * line), text, colour, font(11))
    return panel


def _faults(right: Right, i: int) -> str:
    """The attributes of an image that are not as asked; only the count where that is not, for the rest follows."""
    wrong = [name for name in ATTRIBUTES if not right[name][i]]
    return f"not its {', '.join(wrong[:1] if 'count' in wrong else wrong)}" if wrong else ""


def _number(value: float | None) -> str:
    """Three figures after the point, or four in all for what is large."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"
