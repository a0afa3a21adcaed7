"""Metrics over streams: batches of any size are one set of images, and states are never changed."""

import copy
import dataclasses

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation import metric as folds
from jaxdiff.evaluation.classifiers.svm import SvmClassifier
from jaxdiff.evaluation.features.patches import Patches
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.metric import Metric
from jaxdiff.evaluation.metrics.accuracy import Accuracy
from jaxdiff.evaluation.metrics.class_frechet import ClassFrechet
from jaxdiff.evaluation.metrics.clipped import ClippedScores
from jaxdiff.evaluation.metrics.cmmd import Cmmd
from jaxdiff.evaluation.metrics.colour_shift import ColourShift
from jaxdiff.evaluation.metrics.fid import Fid
from jaxdiff.evaluation.metrics.frechet import Frechet
from jaxdiff.evaluation.metrics.inception_score import InceptionScore
from jaxdiff.evaluation.metrics.intra_class import IntraClassDistance
from jaxdiff.evaluation.metrics.kid import Kid
from jaxdiff.evaluation.metrics.memorization import Memorization
from jaxdiff.evaluation.metrics.patch_frechet import PatchFrechet
from jaxdiff.evaluation.metrics.precision_recall import PrecisionRecall
from jaxdiff.evaluation.metrics.restoration import (
    DistanceToTruth,
    Diversity,
    GeneratedError,
    KnownKept,
    MeanColourError,
    Psnr,
)
from jaxdiff.evaluation.metrics.spectrum import SpectrumDistance
from jaxdiff.evaluation.metrics.spread import ClassSpread
from jaxdiff.evaluation.metrics.vendi import Vendi
from tests.evaluation.models import Space, batches

INCEPTION, CLIP = Space("Inception-v3 (FID)"), Space("CLIP image embeddings")
METRICS = (
    Accuracy(SvmClassifier(gamma=0.05)),
    Frechet(Pixels()),
    PrecisionRecall(Pixels(), k=4),
    ClassSpread(Pixels()),
    Memorization(Pixels()),
    PatchFrechet(Patches(4, 2), generated=True, key="frechet_generated"),
    SpectrumDistance(),
    GeneratedError(),
    KnownKept(),
    MeanColourError(),
    Psnr(),
    DistanceToTruth(),
    Diversity(),
    Fid(INCEPTION, few=True),
    Kid(subsets=2, subset_size=20),
    Cmmd(CLIP),
    InceptionScore(Space("Inception-v3 logits (IS)"), splits=2),
    ClippedScores(k=3),
    Vendi(),
    ClassFrechet(),
    IntraClassDistance(),
    ColourShift(),
)


def images(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 1)).astype(np.uint8)


def streams(size):
    """Train, test and samples in batches of the given size."""
    truth, mask = images(40, 3), images(40, 5)[..., 0] < 90
    yield "train", batches("train", images(60, 1), np.arange(60) % 3, size)
    yield "test", batches("test", images(30, 2), np.arange(30) % 3, size, generated=mask[:30])
    samples = batches("samples", images(40, 4), np.arange(40) % 3, size, truth=truth, generated=mask)
    yield "samples", (dataclasses.replace(batch, repeats=repeats(batch)) for batch in samples)


def repeats(batch):
    return np.stack([batch.images, batch.truth])


def run(metrics, size):
    states = folds.init(metrics)
    for stream, of_stream in streams(size):
        states = folds.fold(metrics, states, of_stream)
        states = states if stream == "samples" else folds.finish(metrics, states, stream)
    return folds.compute(metrics, states)


def flat(values, path=""):
    if not isinstance(values, dict):
        return {path: values}
    return {
        name: value for key, part in values.items() for name, value in flat(part, f"{path}.{key}").items()
    }


@pytest.mark.spread(2)
@pytest.mark.parametrize("size", [1, 7, 30])
def test_values_do_not_depend_on_the_size_of_batches(size):
    expected, found = flat(run(METRICS, 1000)), flat(run(METRICS, size))
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
def test_one_initial_state_serves_several_columns(metric):
    """Samples that follow the same real images are scored independently of each other."""
    states = folds.init((metric,))
    (_, train), (_, test), _ = streams(20)
    for stream, of_stream in (("train", train), ("test", test)):
        states = folds.finish((metric,), folds.fold((metric,), states, of_stream), stream)
    before = copy.deepcopy(states)
    first, second = (
        folds.compute((metric,), folds.fold((metric,), states, list(streams(20))[2][1])) for _ in range(2)
    )
    assert first == second == folds.compute((metric,), folds.fold((metric,), before, list(streams(20))[2][1]))


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
def test_metrics_describe_themselves(metric):
    assert isinstance(metric, Metric)
    values = run((metric,), 1000)
    for row in metric.table():
        assert row.key.split(".")[0] in values
        assert isinstance(row.format(None), str)
    assert set(metric.streams) <= {"train", "test", "samples"}
    assert set(metric.relative) <= set(values)


@pytest.mark.parametrize("metric", [metric for metric in METRICS if not metric.needs_all], ids=repr)
def test_the_state_of_a_streaming_metric_does_not_grow(metric):
    def numbers(stream_of, n):
        samples = batches(stream_of, images(n, 0), np.arange(n) % 3, 10, truth=images(n, 1),
                          generated=images(n, 2)[..., 0] < 90)  # fmt: skip
        return size_of(folds.fold((metric,), folds.init((metric,)), samples))

    for stream in metric.streams:
        assert numbers(stream, 30) == numbers(stream, 300)


def size_of(state):
    if isinstance(state, np.ndarray):
        return state.size
    if isinstance(state, dict):
        return sum(map(size_of, state.values()))
    return sum(map(size_of, state)) if isinstance(state, tuple) else 1


class Broken:
    """A space whose features of one image in seven are no numbers."""

    name = "a broken space"

    def __call__(self, images):
        found = Pixels()(images).astype(np.float64)
        found[::7] = np.nan
        return found


@pytest.mark.parametrize(
    "metric",
    [
        PrecisionRecall(Broken()),
        ClassSpread(Broken()),
        Memorization(Broken()),
        Vendi(Broken()),
        Frechet(Broken()),
    ],
    ids=lambda metric: type(metric).__name__,
)
def test_features_that_are_no_numbers_are_refused(metric):
    stream = metric.streams[0]
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), np.uint8)
    with pytest.raises(UserError, match="features='a broken space': expected finite numbers"):
        folds.fold([metric], folds.init([metric]), batches(stream, images, np.zeros(20, int), 10))


def test_features_are_computed_once_for_equal_extractors():
    calls = []

    @dataclasses.dataclass(frozen=True)
    class Counted:
        name: str = "counted"

        def __call__(self, images):
            calls.append(len(images))
            return images.reshape(len(images), -1) / 255.0

    metrics = (
        Frechet(Counted()),
        PrecisionRecall(Counted()),
        ClassSpread(Counted()),
        Memorization(Counted()),
    )
    run(metrics, 1000)
    assert sorted(calls) == [30, 40, 60]


def test_two_values_of_one_name_are_refused():
    with pytest.raises(UserError, match=r"metrics=Frechet: .*'frechet' twice"):
        run((Frechet(), Frechet(reference="train")), 1000)
    names = {"frechet", "frechet_n", "to_train", "to_train_n"}
    assert names == set(run((Frechet(), Frechet(reference="train", key="to_train")), 1000))


def test_settings_of_all_feature_spaces_are_reported():
    same = folds.settings((Frechet(), PrecisionRecall(k=3)))
    assert same == {"features": Pixels().name, "reference": "test", "k": 3}
    both = folds.settings((Frechet(), PatchFrechet(Patches(4, 2))))
    assert both["features"] == f"{Pixels().name}; {Patches(4, 2).name}"
