"""Photos: small crops of scikit-learn's two photographs, as a TFDS data set. Importing this module imports TFDS."""

import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

NAMES = ("china", "flower")
HEIGHT, WIDTH = 427, 640
TEST_ROWS = (150, 278)  # cross the middle of the pagoda and of the blossom
SCALES = (1, 2)  # photograph pixels per side of an image pixel
STRIDE = {"train": 1 / 4, "test": 1 / 2}  # distance between crops, in sides of a crop


@dataclasses.dataclass(eq=False)
class PhotosConfig(tfds.core.BuilderConfig):
    """Variant of `Photos`; `size` is the side of the images, in pixels."""

    size: int = 32


class Photos(tfds.core.GeneratorBasedBuilder):
    """RGB crops of a pagoda and of a dahlia, at full and at half resolution, labelled by photograph.

    Training and test crops have no pixel in common: a band of rows of each photograph is for testing only, and no crop
    crosses its borders. Both splits show the same two scenes. A test therefore measures how well textures of these
    photographs are restored, not those of other photographs.

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
                    # Position in the photograph: top, left, bottom, right.
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
            for top, left, scale in crops(split, size):
                side = scale * size
                crop = photograph[top : top + side, left : left + side].reshape(size, scale, size, scale, 3)
                # NumPy's mean and rint, unlike Pillow's, are the same on every machine.
                pixels = np.rint(crop.mean(axis=(1, 3))).astype(np.uint8)
                png = io.BytesIO()
                Image.fromarray(pixels).save(png, format="PNG")
                png.seek(0)
                box = np.array((top, left, top + side, left + side), np.int32)
                yield f"{name}-{scale}-{top}-{left}", {"image": png, "label": label, "box": box}


def crops(split: str, size: int) -> Iterator[tuple[int, int, int]]:
    """(top, left, scale) of every crop of a split, the same in both photographs."""
    first, last = TEST_ROWS
    bands = [(first, last)] if split == "test" else [(0, first), (last, HEIGHT)]
    stride = int(size * STRIDE[split])
    for scale in SCALES:
        side = scale * size
        for begin, end in bands:
            for top in range(begin, end - side + 1, stride * scale):
                for left in range(0, WIDTH - side + 1, stride * scale):
                    yield top, left, scale
