"""Digits: scikit-learn's handwritten digits as a TFDS data set. Importing this module imports TFDS."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

TEST_SIZE = 297
LEVELS = 16  # the scans count the black pixels of 4x4 blocks


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 scans of handwritten digits, 8x8 pixels, in a fixed stratified split: 1,500 train, 297 test.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (the part that
    `sklearn.datasets.load_digits` ships, so nothing is downloaded). Prepared without TensorFlow.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012  (TFDS's own interface)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8, encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            description="Scans of handwritten digits, 8x8 pixels, grey levels 0..16 scaled to 0..255.",
            features=tfds.features.FeaturesDict(
                {"image": image, "label": tfds.features.ClassLabel(num_classes=10)}
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        from sklearn import datasets

        digits = datasets.load_digits()
        images = np.round(digits.images * 255 / LEVELS).astype(np.uint8)
        train, test = stratified_split(digits.target, TEST_SIZE)
        return {
            "train": self._generate_examples(images, digits.target, train),
            "test": self._generate_examples(images, digits.target, test),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, rows: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        from PIL import Image

        for row in rows:
            png = io.BytesIO()  # encoded here, as TFDS would encode an array with TensorFlow
            Image.fromarray(images[row]).save(png, format="PNG")
            png.seek(0)
            yield int(row), {"image": png, "label": int(labels[row])}


def stratified_split(labels: np.ndarray, test_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Deterministic stratified split: each class has the same fraction of test rows, up to one row.

    The file is ordered by writer, so rows are shuffled first. Then they are sorted by class, and evenly spaced rows
    become the test rows.

    Args:
      labels: class of each row, [n].
      test_size: number of test rows.

    Returns:
      Row indices of the training and of the test examples.
    """
    # NumPy freezes the stream of a RandomState (NEP 19); a Generator's may change with the version.
    order = np.random.RandomState(0).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    is_test = np.zeros(len(labels), bool)
    is_test[np.arange(test_size) * len(labels) // test_size] = True
    return by_class[~is_test], by_class[is_test]
