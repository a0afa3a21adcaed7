"""Evaluation of an image model, by class or without: are samples right, good, varied and new?

Four questions, because each alone is easy to satisfy: noise is new, training images are good, one perfect
image of each class is right. Real training images are scored in the same way, at the same number: the
*yardstick*, which a perfect model would match in everything but novelty.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Integer

import jaxdiff
from jaxdiff.errors import require
from jaxdiff.evaluation.classifiers.svm import SvmClassifier
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.metrics import frechet
from jaxdiff.evaluation.metrics import memorization as diversity
from jaxdiff.evaluation.metrics import precision_recall as neighbours
from jaxdiff.evaluation.metrics.bits_per_dim import Likelihood
from jaxdiff.evaluation.plots.panel import Gallery, picture
from jaxdiff.evaluation.plots.tables import caption, figures
from jaxdiff.evaluation.protocols import Conditions, EvaluationInputs, Examples, Generate, Report

QUANTISATION = "uint8: round((x + 1) * 127.5), clipped"
ALWAYS_KS = (3, 4, 5)
GALLERY_CLASSES = 10

Labelled = tuple[np.ndarray, np.ndarray]
"""Images uint8 [n, height, width, channels] and labels int [n]."""


@runtime_checkable
class Features(Protocol):
    """A feature space with a name to state."""

    @property
    def name(self) -> str: ...

    def __call__(self, images: np.ndarray) -> np.ndarray: ...


@runtime_checkable
class Classifier(Protocol):
    """A fitted judge."""

    def predict(self, images: np.ndarray) -> np.ndarray: ...


@runtime_checkable
class Judge(Protocol):
    """A kind of classifier, to be fitted to real training images."""

    @property
    def name(self) -> str: ...

    def fit(self, images: np.ndarray, labels: np.ndarray) -> Classifier: ...


class _Reference(NamedTuple):
    """All that scoring needs to know of the real images."""

    classifier: Classifier | None
    train_images: np.ndarray
    train_labels: np.ndarray
    train: np.ndarray
    test: np.ndarray
    test_distances: Float64[np.ndarray, "n 2"]


@dataclasses.dataclass(frozen=True)
class ImageEvaluation:
    """What to measure, and on how many samples.

    Args:
      features: the space of all distances.
      judge: the classifier that says whether a sample shows the class that was asked for, where one is.
      n: number of samples at each guidance.
      k: neighbours of the headline precision, recall, density and coverage; 3, 4 and 5 are always reported.
      guidances: guidance scales to sample at, besides 1 (off) and the one of the recipe.
      seed: of the samples' noise, and of the choice of the yardstick's images.
      likelihood: how many bits the test images need, measured in this way; None for not at all, since it is costly.
    """

    features: Features = dataclasses.field(default_factory=Pixels)
    judge: Judge = dataclasses.field(default_factory=SvmClassifier)
    n: int = 1000
    k: int = 5
    guidances: tuple[float, ...] = ()
    seed: int = 0
    likelihood: Likelihood | None = None

    def __post_init__(self):
        require(self.n > max(self.k, *ALWAYS_KS), "n", self.n, "k needs more samples", "take 1000 or more")
        require(self.k > 0, "k", self.k, "a neighbour is needed", "take 5")

    def __call__(self, subject: EvaluationInputs) -> Report:
        """Ask for classes in turn, if they are the model's only condition; else for the conditions of test examples."""
        by_class = "label" in subject.conditions
        real_train, real_test = (_labelled(examples, by_class) for examples in (subject.train, subject.test))
        conditions, labels = self.ask(subject.conditions, real_train, subject.test)
        guidances = {1.0, subject.guidance, *self.guidances} if subject.conditions else {1.0}
        samples = self.sample(subject.generate, conditions, guidances, real_train[0].shape[1:])
        bits = None
        if self.likelihood is not None and subject.bits is not None:
            bits = subject.bits(self.likelihood)
        values = self.score(
            samples, labels, real_train, real_test, subject.noise_losses, subject.settings, bits
        )
        drawn = picture(values, self.gallery(samples, labels, real_train))
        return Report(values, figures(values), caption(values), drawn)

    def ask(
        self, conditions: tuple[str, ...], real_train: Labelled, test: Examples
    ) -> tuple[dict[str, Any], Integer[np.ndarray, "n"]]:
        """What to ask for, and the classes that this means: all 0 if they are not asked for."""
        if conditions == ("label",):
            # 0, 1, ..., 0, 1, ..., so that any first part is balanced too.
            classes = np.unique(real_train[1])
            require(
                self.n >= 2 * len(classes), "n", self.n, f"{len(classes)} classes need two each", "raise n"
            )
            labels = classes[np.arange(self.n) % len(classes)]
            return {"label": labels}, labels
        rows = np.arange(self.n) % len(test["image"])
        asked = {name: test[name][rows] for name in conditions}
        return asked or {"n": self.n}, asked.get("label", np.zeros(self.n, int))

    def sample(
        self, generate: Generate, conditions: Conditions, guidances: Iterable[float], shape: tuple[int, ...]
    ) -> dict[float, np.ndarray]:
        """Samples of a shape at each guidance, from the same noise."""
        samples = {float(g): generate(conditions, self.seed, float(g)) for g in sorted(guidances)}
        for images in samples.values():
            if images.dtype != np.uint8 or images.shape != (self.n, *shape):
                expected = (self.n, *shape)
                raise ValueError(f"generate gave {images.dtype} {images.shape}, expected uint8 {expected}")
        return samples

    def score(
        self,
        samples: Mapping[float, np.ndarray],
        labels: Integer[np.ndarray, "n"],
        real_train: Labelled,
        real_test: Labelled,
        noise_losses: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        likelihood: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The report: plain numbers, strings, lists and dicts.

        Args:
          samples: by guidance, each [n, height, width, channels].
          labels: the classes that were asked for; all the same if none was.
          real_train: images and labels that the model was trained on.
          real_test: images and labels that neither the model nor the judge has seen.
          noise_losses: "log_snr", "train" and "test", each [m]: the loss on both splits at m noise levels.
          settings: facts on how samples were made (sampler, steps, checkpoint...), kept beside every value.
          likelihood: what `jaxdiff.evaluation.metrics.bits_per_dim.measure` gives of test images.
        """
        chosen = matching(labels, real_train[1], self.seed)
        matched = chosen >= 0
        reference = self._reference(real_train, real_test)
        conditions = {
            "seed": self.seed,
            "features": self.features.name,
            "quantisation": QUANTISATION,
            "judge": self.judge.name if reference.classifier is not None else None,
            "test": _fingerprint(*real_test),
            "train": _fingerprint(*real_train),
            "version": jaxdiff.__version__,
            **(settings or {}),
        }
        yardstick = self._row(real_train[0][chosen[matched]], labels[matched], reference)
        rows = []
        for guidance, images in samples.items():
            row = self._row(images, labels, reference)
            equal = row if matched.all() else self._row(images[matched], labels[matched], reference)
            ratios = {
                name: equal[name] / yardstick[name] if yardstick[name] > 0 else None
                for name in ("recall", "coverage")
            }
            stated = {"n": self.n, "guidance": float(guidance), **conditions}
            rows.append({"guidance": float(guidance), **row, "over_yardstick": ratios, "conditions": stated})
        yardstick["conditions"] = {"n": int(matched.sum()), "images": "real training images", **conditions}
        return {
            "k": self.k,
            "test_images": len(real_test[0]),
            "train_images": len(real_train[0]),
            "judge_accuracy_on_test": _share_right(reference.classifier, *real_test),
            "samples": rows,
            "yardstick": yardstick,
            "noise_losses": _curves(noise_losses),
            "likelihood": likelihood and {**likelihood, "test": conditions["test"]},
        }

    def gallery(
        self,
        samples: Mapping[float, np.ndarray],
        labels: Integer[np.ndarray, "n"],
        real_train: Labelled,
        per_class: int = 6,
    ) -> Gallery:
        """The first samples of the first ten classes, and the training images nearest to them."""
        shown = np.flatnonzero(np.isin(labels, np.unique(labels)[:GALLERY_CLASSES]))
        shown = shown[: per_class * len(np.unique(labels[shown]))]
        train = self.features(real_train[0])
        images, near = {}, {}
        for guidance, values in samples.items():
            images[float(guidance)] = values[shown]
            _, indices = neighbours.nearest(self.features(values[shown]), train)
            near[float(guidance)] = real_train[0][indices[:, 0]]
        return Gallery(labels[shown], images, near)

    def _reference(self, real_train: Labelled, real_test: Labelled) -> _Reference:
        train, test = self.features(real_train[0]), self.features(real_test[0])
        distances, _ = neighbours.nearest(test, train, 2)
        classifier = self.judge.fit(*real_train) if len(np.unique(real_train[1])) > 1 else None
        return _Reference(classifier, *real_train, train, test, distances)

    def _row(self, images: np.ndarray, labels: np.ndarray, reference: _Reference) -> dict[str, Any]:
        """Every measure of one set of images, real or not."""
        features = self.features(images)
        ks = sorted({*ALWAYS_KS, self.k})
        manifold = neighbours.manifold_scores(reference.test, features, ks)
        spreads = diversity.class_spreads(features, labels, reference.train, reference.train_labels)
        distances, _ = neighbours.nearest(features, reference.train, 2)
        copies = neighbours.members(images, reference.train_images)
        return {
            "accuracy": _share_right(reference.classifier, images, labels),
            "accuracy_by_class": {
                str(c): _share_right(reference.classifier, images[labels == c], labels[labels == c])
                for c in np.unique(labels)
            },
            "frechet": frechet.frechet_distance(frechet.fit(features), frechet.fit(reference.test)),
            **_numbers(manifold[self.k]),
            "by_k": {str(k): _numbers(manifold[k]) for k in ks},
            "memorisation": {
                **diversity.memorisation(distances, reference.test_distances),
                "exact_copies": float(copies.mean()),
            },
            "spread": {
                "minimum": min(spreads.values(), default=None),
                "by_class": {str(label): spread for label, spread in spreads.items()},
            },
        }


def _labelled(examples: Examples, by_class: bool) -> Labelled:
    """Images and their classes; all 0 if the model knows of none."""
    images = examples["image"]
    return images, examples["label"] if by_class else np.zeros(len(images), int)


def _share_right(classifier: Classifier | None, images: np.ndarray, labels: np.ndarray) -> float | None:
    return None if classifier is None else float(np.mean(classifier.predict(images) == labels))


def matching(
    labels: Integer[np.ndarray, "n"], real_labels: Integer[np.ndarray, "m"], seed: int
) -> Integer[np.ndarray, "n"]:
    """For each label the index of another real image of that class, at random; -1 where the class ran out."""
    generator = np.random.default_rng(seed)
    chosen = np.full(len(labels), -1)
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        pool = generator.permutation(np.flatnonzero(real_labels == label))[: len(positions)]
        chosen[positions[: len(pool)]] = pool
    return chosen


def _numbers(scores: neighbours.ManifoldScores) -> dict[str, float]:
    return {name: float(value) for name, value in scores._asdict().items()}


def _curves(noise_losses: Mapping[str, Any] | None) -> dict[str, list[float]] | None:
    if noise_losses is None:
        return None
    curves = {name: [float(value) for value in noise_losses[name]] for name in ("log_snr", "train", "test")}
    if len({len(values) for values in curves.values()}) != 1:
        raise ValueError(f"noise_losses: lengths differ: { {name: len(v) for name, v in curves.items()} }")
    return curves


def _fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """Which real images a value was measured against."""
    parts = (str(images.shape).encode(), images.tobytes(), np.asarray(labels, np.int64).tobytes())
    return f"sha256:{hashlib.sha256(b''.join(parts)).hexdigest()[:16]}"
