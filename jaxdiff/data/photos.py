"""scikit-learn's two photographs, cut into small images, as a TFDS data set. Importing this module imports TFDS."""

import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

NAMES = ("china", "flower")
HEIGHT, WIDTH = 427, 640
TEST_ROWS = (150, 278)  # the middle of the pagoda and of the blossom, and as much of what lies beside them
SCALES = (1, 2)  # pixels of the photograph to a side of a pixel
STRIDE = {"train": 1 / 4, "test": 1 / 2}  # between crops, in their sides


@dataclasses.dataclass(eq=False)
class PhotosConfig(tfds.core.BuilderConfig):
    """`size`: of the images, in pixels."""

    size: int = 32


class Photos(tfds.core.GeneratorBasedBuilder):
    """Crops of a pagoda and of a dahlia in natural colours, at full and at half resolution, and whose they are.

    Training and testing share no pixel: a band of rows of either photograph is for testing only, and no crop
    crosses its borders. The two scenes are those of training all the same, so that a test tells how well textures of
    these photographs are restored, not how well those of others would be.

    Source: `sklearn.datasets.load_sample_images` (CC BY 2.0): china.jpg by danielbuechele, flower.jpg by vultilion.
    Nothing is downloaded.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012  (TFDS's own interface)
    BUILDER_CONFIGS = [  # noqa: RUF012
        PhotosConfig(name=str(size), description=f"{size} x {size} pixels.", size=size) for size in (32, 64)
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        size = self._size
        image = tfds.features.Image(shape=(size, size, 3), dtype=np.uint8, encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            description="Crops of two photographs; training and testing share no pixel.",
            features=tfds.features.FeaturesDict(
                {
                    "image": image,
                    "label": tfds.features.ClassLabel(names=list(NAMES)),
                    # Where in the photograph: top, left, bottom, right.
                    "box": tfds.features.Tensor(shape=(4,), dtype=np.int32),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_sample_images.html",
        )

    @property
    def _size(self) -> int:
        config: Any = self.builder_config
        return config.size

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in STRIDE}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        from PIL import Image
        from sklearn import datasets

        size = self._size
        for label, name in enumerate(NAMES):
            photograph = datasets.load_sample_image(f"{name}.jpg")
            for top, left, scale in places(split, size):
                side = scale * size
                crop = photograph[top : top + side, left : left + side].reshape(size, scale, size, scale, 3)
                # numpy's mean and rint, not PIL's: the same on every machine.
                pixels = np.rint(crop.mean(axis=(1, 3))).astype(np.uint8)
                png = io.BytesIO()
                Image.fromarray(pixels).save(png, format="PNG")
                png.seek(0)
                box = np.array((top, left, top + side, left + side), np.int32)
                yield f"{name}-{scale}-{top}-{left}", {"image": png, "label": label, "box": box}


def places(split: str, size: int) -> Iterator[tuple[int, int, int]]:
    """(top, left, scale) of every crop of a split: the same in both photographs."""
    first, last = TEST_ROWS
    bands = [(first, last)] if split == "test" else [(0, first), (last, HEIGHT)]
    stride = int(size * STRIDE[split])
    for scale in SCALES:
        side = scale * size
        for begin, end in bands:
            for top in range(begin, end - side + 1, stride * scale):
                for left in range(0, WIDTH - side + 1, stride * scale):
                    yield top, left, scale
