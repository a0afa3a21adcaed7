"""Scenes: captioned images of coloured handwritten digits in spatial relations, as a TFDS data set.

Importing this module imports TFDS.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxdiff.data.digits import LEVELS, TEST_SIZE, stratified_split

SIZE = 24
SIDE = 8  # of the scans, drawn at their own resolution
MOST = SIZE // SIDE  # largest number of objects
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (230, 40, 40),
    "green": (40, 190, 60),
    "blue": (60, 90, 255),
    "yellow": (240, 220, 50),
    "magenta": (220, 60, 220),
    "white": (255, 255, 255),
}
NEW_COLOUR = {"cyan": (40, 210, 230)}
"""A colour that only the splits `cyan` and `cyan_test` have: what a trained model can be taught."""

RELATIONS = ("alone", "left of", "right of", "above", "below")
PHRASES = {"left of": "to the left of", "right of": "to the right of"}
COUNTS = {"train": 16000, "test": 1000, "novel": 1000, "cyan": 1000, "cyan_test": 500}
MISSING = -1


class Scenes(tfds.core.GeneratorBasedBuilder):
    """One to three digits on black, each in a colour, with a caption: "a red three above a green seven".

    With three digits, the relation holds from each to the next. All attributes are stored: the `relation`, the `count`
    of digits, and per digit, in the order of the caption, `digits`, `colours` and `boxes` (top, left, bottom, right).
    Missing digits are -1.

    Splits: ``train``; ``test``, with other scans but the compositions of training; ``novel``, with the scans of test
    and only (digit, colour, relation) triples that training lacks. Training has every pair of such a triple. ``cyan``
    and ``cyan_test`` are scenes like those of ``train`` and ``test`` in which one or more digits are cyan.

    Scans: those of `digits`; its training scans make the training scenes and ``cyan``, its test scans the others.
    Nothing is downloaded.
    """

    VERSION = tfds.core.Version("2.1.0")
    RELEASE_NOTES = {  # noqa: RUF012  (TFDS's own interface)
        "2.1.0": "Splits with another colour, cyan.",
        "2.0.0": "24 x 24 pixels, scans at their own resolution, twice as many training scenes.",
        "1.0.0": "First release.",
    }

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Coloured handwritten digits in spatial relations, {SIZE} x {SIZE} pixels, with captions.",
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(SIZE, SIZE, 3), dtype=np.uint8, encoding_format="png"),
                    "caption": features.Text(),
                    "relation": features.ClassLabel(names=list(RELATIONS)),
                    "count": features.Scalar(dtype=np.int32),
                    "digits": features.Tensor(shape=(MOST,), dtype=np.int32),
                    "colours": features.Tensor(shape=(MOST,), dtype=np.int32),
                    "boxes": features.Tensor(shape=(MOST, 4), dtype=np.int32),
                    # Indices of the scans in `load_digits`.
                    "scans": features.Tensor(shape=(MOST,), dtype=np.int32),
                }
            ),
            supervised_keys=("caption", "image"),
            homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        from PIL import Image
        from sklearn import datasets

        scans = datasets.load_digits()
        train, test = stratified_split(scans.target, TEST_SIZE)
        rows = train if split in ("train", "cyan") else test
        by_digit = [rows[scans.target[rows] == digit] for digit in range(len(DIGITS))]
        # RandomState's stream is frozen by NumPy (NEP 19).
        rng = np.random.RandomState(list(COUNTS).index(split))
        for i in range(COUNTS[split]):
            scene = compose(rng, by_digit, novel=split == "novel")
            if split.startswith("cyan"):
                scene["colours"] = with_new_colour(rng, scene["colours"])
            png = io.BytesIO()
            Image.fromarray(render(scans.images, scene)).save(png, format="PNG")
            png.seek(0)
            lacking = MOST - scene["count"]
            padded = {
                name: np.concatenate([value, np.full((lacking, *value.shape[1:]), MISSING)]).astype(np.int32)
                for name, value in scene.items()
                if isinstance(value, np.ndarray)
            }
            yield i, {**scene, **padded, "image": png, "caption": caption(scene)}


def is_novel(digit: int, colour: int, relation: int) -> bool:
    """Whether a combination is excluded from training: a fifth of all, so that training has each pair of attributes.

    A Latin square: for any two attributes, at least one value of the third is novel, and one is not.
    """
    return (digit + 2 * colour + 3 * relation) % len(RELATIONS) == 0


def compose(rng: np.random.RandomState, by_digit: list[np.ndarray], novel: bool) -> dict[str, Any]:
    """Draw a scene: count, relation, and the scan, digit, colour and box of each object."""
    count = 1 + rng.choice(MOST, p=(0.2, 0.5, 0.3))
    relation = 0 if count == 1 else 1 + rng.randint(len(RELATIONS) - 1)
    objects = []
    while len(objects) < count:
        drawn = rng.randint(len(DIGITS)), rng.randint(len(COLOURS))
        if is_novel(*drawn, relation) == novel:
            objects.append(drawn)
    digits, colours = np.array(objects).T
    return {
        "count": count,
        "relation": relation,
        "digits": digits,
        "colours": colours,
        "scans": np.array([by_digit[digit][rng.randint(len(by_digit[digit]))] for digit in digits]),
        "boxes": _boxes(rng, count, RELATIONS[relation]),
    }


def with_new_colour(rng: np.random.RandomState, colours: np.ndarray) -> np.ndarray:
    """The colours of a scene's objects with the new colour in place of one, and in a quarter of the others."""
    chosen = rng.random_sample(len(colours)) < 0.25
    chosen[rng.randint(len(colours))] = True
    return np.where(chosen, len(COLOURS), colours)


def colours(new: bool = True) -> dict[str, tuple[int, int, int]]:
    """The named colours in the order of their numbers, with the new one at the end."""
    return {**COLOURS, **NEW_COLOUR} if new else COLOURS


def caption(scene: dict[str, Any]) -> str:
    """The caption of a scene."""
    names = [
        f"a {list(colours())[colour]} {DIGITS[digit]}"
        for digit, colour in zip(scene["digits"], scene["colours"], strict=True)
    ]
    relation = RELATIONS[scene["relation"]]
    return f" {PHRASES.get(relation, relation)} ".join(names)


def render(scans: np.ndarray, scene: dict[str, Any]) -> np.ndarray:
    """Draw the scene as uint8 [24, 24, 3]: the ink of a scan mixes its colour with black."""
    canvas = np.zeros((SIZE, SIZE, 3))
    for scan, colour, box in zip(scene["scans"], scene["colours"], scene["boxes"], strict=True):
        top, left, bottom, right = box
        canvas[top:bottom, left:right] += scans[scan][..., None] / LEVELS * list(colours().values())[colour]
    return np.rint(canvas).astype(np.uint8)


def _boxes(rng: np.random.RandomState, count: int, relation: str) -> np.ndarray:
    """Boxes [count, 4] in the given relation, each in its own strip of the canvas."""
    room = SIZE - SIDE
    if count == 1:
        first, second = rng.randint(room + 1, size=(2, 1))
    else:
        strip = SIZE // count
        along = np.array([i * strip + rng.randint(strip - SIDE + 1) for i in range(count)])
        # On the other axis all are near one line, so that no other relation fits the scene.
        across = np.clip(rng.randint(room + 1) + rng.randint(-2, 3, count), 0, room)
        if relation in ("right of", "below"):
            along, across = along[::-1], across[::-1]
        first, second = (across, along) if relation in ("left of", "right of") else (along, across)
    return np.stack([first, second, first + SIDE, second + SIDE], axis=-1)
