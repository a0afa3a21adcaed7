"""Reference statistics of a data set: of all its images in batches of any size, written and read by the command."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxdiff import evaluate
from jaxdiff.distributed import runtime
from jaxdiff.errors import UserError
from jaxdiff.evaluation.classifiers.svm import SvmClassifier
from jaxdiff.evaluation.evaluation import Evaluation
from jaxdiff.evaluation.examples import InMemory
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.metrics.accuracy import Accuracy
from jaxdiff.evaluation.metrics.frechet import Frechet
from jaxdiff.evaluation.metrics.moments import fit
from jaxdiff.evaluation.metrics.reference_files import load
from jaxdiff.evaluation.references import check, measure, with_reference
from jaxdiff.evaluation.reports.class_conditional import ImageEvaluation

PIXELS = "jaxdiff.evaluation.features.pixels:Pixels"


def test_all_images_count_once_in_batches_of_any_size(digits):
    images = digits[1][0]
    expected = fit(Pixels()(images))
    for size in (1, 64, 1000):
        found = measure(InMemory({"image": images}), Pixels(), size)
        assert found.n == 297
        np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-12, atol=1e-12)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "start", lambda: None)
    (tmp_path / "photos").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3)).astype(np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "photos" / f"{i:02}.png")
    return tmp_path, images


def words(folder, **flags):
    source = f'data=jaxdiff.data.folder:ImageFolder(path="{folder}/photos", size=4, label=None)'
    given = {"--reference": source, "--features": PIXELS, "--out": f"{folder}/photos.npz", **flags}
    return [word for pair in given.items() if pair[1] is not None for word in pair]


def test_the_command_writes_the_statistics_of_a_folder(photos, capsys):
    folder, images = photos
    evaluate.main([*words(folder), "--batch-size", "5"])
    found = load(folder / "photos.npz")
    assert found.hash in capsys.readouterr().out
    expected = fit(Pixels()(images))
    np.testing.assert_allclose(found.gaussian.covariance, expected.covariance, rtol=1e-12, atol=1e-12)
    assert found.gaussian.n == found.made["data"]["length"] == 12
    assert found.made["features"] == Pixels().name
    assert json.loads(json.dumps(found.made)) == found.made
    with pytest.raises(UserError, match=r"--out=.*expected a new file.*--overwrite"):
        evaluate.main(words(folder))
    evaluate.main([*words(folder), "--overwrite"])


MISTAKES = {
    "batch size": ({"--batch-size": "0"}, "--batch-size=0: expected a number of images > 0"),
    "no output": ({"--out": None}, "--out=None: expected the name of a new .npz file"),
    "suffix": ({"--out": "photos.json"}, "--out='photos.json': expected a name that ends in .npz"),
    "no features": ({"--features": None}, "--features=None: expected a feature space"),
    "unknown features": ({"--features": "jaxdiff.evaluation.features.pixels:Pixel"}, "Pixels"),
    "many features": ({"--features": f"{PIXELS}, {PIXELS}"}, "--features=.*expected a class with arguments"),
    "no data": (
        {"--reference": "data=photos"},
        "--reference='data=photos': expected data=train or data=test",
    ),
    "no source": (
        {"--reference": f"data={PIXELS}"},
        "--reference=.*expected a source of examples, got Pixels",
    ),
    "no space": (
        {"--features": "jaxdiff.sampling.samplers.ddim:Ddim"},
        "--features=.*expected a feature space, got Ddim",
    ),
    "no run": ({"--reference": "data=test"}, "--reference='data=test': expected a run with test data"),
}


@pytest.mark.parametrize(("flags", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named_before_the_work(photos, flags, message, monkeypatch):
    monkeypatch.chdir(photos[0])
    with pytest.raises(UserError, match=message):
        evaluate.main(words(photos[0], **flags))
    assert not (photos[0] / "photos.npz").exists()


def test_flags_without_their_purpose_are_refused():
    for given, message in (
        ([], "--workdir='': expected the folder of a run, got none. Fix: give --workdir"),
        (["--workdir", "x", "--out", "y.npz"], "--out='y.npz': expected a folder, or --reference data="),
        (["--workdir", "x", "--features", PIXELS], "--features='.*': expected --reference data="),
        (["--workdir", "x", "--compare", "a", "b"], "--workdir='x': expected --compare A B without a run"),
        (["--out", "x", "--compare", "a", "b"], "--out='x': expected --compare A B without a run"),
        (["--config.seed=1", "--compare", "a", "b"], "--config=.*expected --compare A B without a config"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate.main(given)


def test_a_file_replaces_the_reference_of_frechet_distances_only():
    metrics = (Accuracy(SvmClassifier()), Frechet(), Frechet(reference="train", key="to_train"))
    found = with_reference(Evaluation(metrics), "x.npz")
    assert found.metrics[0] == metrics[0]
    assert [metric.reference for metric in found.metrics[1:]] == ["x.npz", "x.npz"]
    preset = with_reference(ImageEvaluation(), "x.npz")
    assert preset.evaluation.metrics[1] == Frechet(Pixels(), "x.npz")
    for evaluation in (found, preset):
        with pytest.raises(UserError, match=r"reference='x.npz': .*got no file"):
            check(evaluation)
    check(ImageEvaluation())
    with pytest.raises(
        UserError, match=r"--reference='x.npz': expected an evaluation with a Frechet distance"
    ):
        with_reference(Evaluation((Accuracy(SvmClassifier()),)), "x.npz")
