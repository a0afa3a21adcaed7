"""Measures the stack of configs/scenes_unclip.py on held-out compositions, and draws interpolations of two scenes.

    python docs/scripts/scenes_unclip.py --runs runs/scenes_unclip --n 500 --out docs/images/scenes_unclip.png

Prints, read by the classifier of `SceneEvaluation`: the fraction of captions that samples satisfy, with and without the
decoder's own text, beside real images and images of other captions; how often variations keep the attributes of their
source, beside pairs of unrelated scenes; and for interpolations the fraction of colours and digits that go from the
first scene's to the last scene's once and for all.
"""

import argparse

import numpy as np

from jaxdiff import config as configs
from jaxdiff.data.images import resize, save_png
from jaxdiff.evaluation.scenes.classifier import FIELDS, SceneClassifier
from jaxdiff.generation.unclip import Unclip

EMPTY = 60
"""The brightest value of an image without a digit, of 255."""

FRACTIONS = tuple(np.linspace(0, 1, 9).tolist())


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("--runs", default="runs/scenes_unclip")
    flags.add_argument("--n", type=int, default=500)
    flags.add_argument("--out", default="docs/images/scenes_unclip.png")
    given = flags.parse_args()

    experiment = configs.build(configs.load("configs/scenes_unclip.py:decoder"))
    train, novel = experiment.data.stored().rows(np.arange(4000)), experiment.test_data.stored()
    test = novel.rows(np.arange(given.n))
    scenes = {name: test[name] for name in FIELDS}
    judge = SceneClassifier().fit(train["image"], {name: train[name] for name in FIELDS})
    unclip = Unclip.load(given.runs)

    report("real", judge(test["image"], scenes))
    others = np.roll(np.arange(given.n), given.n // 2)
    report("real, other captions", judge(test["image"][others], scenes))
    for name, shown in (("captions", True), ("captions, decoder without text", False)):
        vectors = unclip.stages.models["prior"](text=test["text"], seed=0)
        images = unclip.decode(vectors, seed=0, **({"text": test["text"]} if shown else {}))
        report(name, judge(small(images), scenes))
    variations = small(unclip.decode(unclip.image_vectors(test["image"]), seed=1))
    report("variations", judge(variations, scenes))
    reconstructed = np.abs(variations.astype(float) - test["image"]).mean()
    print(f"mean difference of pixels: {reconstructed:.1f} of 255")
    interpolations(unclip, judge, test["image"], given.out)


def small(images: np.ndarray) -> np.ndarray:
    """Images of the size that the classifier reads."""
    return np.stack([resize(image, (24, 24), "area") for image in images])


def report(name: str, correct: dict) -> None:
    values = "  ".join(f"{key} {np.mean(value):.3f}" for key, value in correct.items())
    print(f"{name:34s}{values}", flush=True)


def interpolations(unclip: Unclip, judge, images: np.ndarray, out: str) -> None:
    """Rows of images from one scene to another, and how often attributes turn once and for all."""
    single = np.flatnonzero(judge.read(images).count == 1)
    pairs = [(int(a), int(b)) for a, b in zip(single[0::2], single[1::2], strict=False)][:32]
    rows = [unclip.interpolate(images[a], images[b], FRACTIONS, seed=7) for a, b in pairs]
    turns = [
        monotone(judge.read(small(row)), judge.read(images[[a, b]]))
        for row, (a, b) in zip(rows, pairs, strict=True)
    ]
    turns = [turn for row in turns for turn in row]
    print(f"interpolations: {np.mean(turns):.3f} of {len(turns)} attributes that differ change monotonically")
    drawn = np.mean([np.mean(small(row).max((1, 2, 3)) > EMPTY) for row in rows])
    print(f"interpolations: {drawn:.3f} of the images are not empty")
    large = images.repeat(2, axis=1).repeat(2, axis=2)
    ends = [
        np.concatenate([large[[a]], row, large[[b]]]) for row, (a, b) in zip(rows[:8], pairs, strict=False)
    ]
    grid = np.stack([np.concatenate(list(np.pad(row, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=90)), axis=1)
                     for row in ends])  # fmt: skip
    save_png(out, np.concatenate(list(grid)).repeat(2, axis=0).repeat(2, axis=1))


def monotone(between, ends) -> list[bool]:
    """For colour and digit, where they differ: whether a row begins at the first value and ends at the last, and
    neither returns to the first nor leaves the last.
    """
    found = []
    for name in ("colours", "digits"):
        first, last = getattr(ends, name)[:, 0]
        if first != last:
            values = getattr(between, name)[:, 0]
            at_first, at_last = values == first, values == last
            turns = np.any(at_first[1:] & ~at_first[:-1]) or np.any(at_last[:-1] & ~at_last[1:])
            found.append(bool(at_first[0] and at_last[-1] and not turns))
    return found


if __name__ == "__main__":
    main()
