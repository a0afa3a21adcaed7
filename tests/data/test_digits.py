"""The digits data set is scikit-learn's, stratified, and prepared without TensorFlow."""

import os
import pathlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxdiff.data.digits import stratified_split
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def splits():
    return {name: Pipeline(Tfds("digits", split=name)).all() for name in ("train", "test")}


def scans(levels, labels):
    """Each scan as a hashable: no two of the 1,797 are equal."""
    flat = np.asarray(levels).reshape(len(levels), -1).astype(np.uint8)
    return [(row.tobytes(), int(label)) for row, label in zip(flat, labels, strict=True)]


def test_splits_are_disjoint_and_together_scikit_learns_content(splits):
    original = load_digits()
    expected = scans(original.images, original.target)
    assert len(set(expected)) == 1797
    # 16 levels on 0..255 lie 15.9 apart, so that the original level can be read off exactly.
    read = {name: scans(np.round(part["image"] / 255 * 16), part["label"]) for name, part in splits.items()}
    assert Counter(read["train"] + read["test"]) == Counter(expected)
    assert not set(read["train"]) & set(read["test"])


def test_levels_use_the_full_range_of_bytes(splits):
    image = splits["train"]["image"]
    assert image.dtype == np.uint8
    assert image.shape == (1500, 8, 8, 1)
    assert set(np.unique(image)) == {round(level * 255 / 16) for level in range(17)}


def test_splits_have_exact_sizes_and_equal_fractions_of_each_class(splits):
    train, test = (np.bincount(splits[name]["label"], minlength=10) for name in ("train", "test"))
    assert (train.sum(), test.sum()) == (1500, 297)
    assert np.abs(test - (train + test) * 297 / 1797).max() < 1


@pytest.mark.parametrize("test_size", [1, 7, 50, 99])
def test_stratified_split_is_a_partition(test_size):
    labels = np.random.default_rng(test_size).integers(0, 4, 100)
    train, test = stratified_split(labels, test_size)
    assert len(test) == test_size
    assert sorted([*train, *test]) == list(range(100))
    expected = np.bincount(labels, minlength=4) * test_size / 100
    assert np.abs(np.bincount(labels[test], minlength=4) - expected).max() < 1


def test_both_splits_mix_the_beginning_and_the_end_of_the_file():
    labels = load_digits().target
    for rows in stratified_split(labels, 297):
        assert abs(np.median(rows) - 898) < 100


def start(code, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.slow
def test_processes_that_race_prepare_once_and_without_tensorflow(tmp_path):
    code = (
        "import sys; from jaxdiff.data.sources import Tfds; examples = Tfds('digits').open(); examples[0]\n"
        "assert 'tensorflow' not in sys.modules\n"
        "print(len(examples))"
    )
    processes = [start(code, TFDS_DATA_DIR=str(tmp_path)) for _ in range(2)]
    ends = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert [out for out, _ in ends] == ["1500\n"] * 2
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_configs_can_import_the_blocks_without_anything_heavy():
    process = start(
        "import sys\n"
        "from jaxdiff.data import conditions, degradations, folder, images, masks, mixture\n"
        "from jaxdiff.data import pipeline, sources, transforms\n"
        "print({'jax', 'grain', 'tensorflow_datasets', 'sklearn', 'scipy', 'PIL'} & set(sys.modules))"
    )
    assert process.communicate()[0] == "set()\n"
