"""Buckets: their shapes, which of them an image has, and what is cut off it."""

import dataclasses

import numpy as np
import pytest

from jaxdiff.data.buckets import LEFT_OUT, Buckets
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.transforms import Cover, HorizontalFlip, covering
from jaxdiff.errors import UserError
from tests.data.many_shapes import SMALL, take


@pytest.mark.parametrize(
    ("size", "step", "ratio"), [(1024, 64, 2.0), (512, 64, 4.0), (64, 8, 1.5), (16, 16, 2)]
)
def test_shapes_are_multiples_of_the_step_within_area_and_ratio(size, step, ratio):
    shapes = Buckets(size, step, ratio).shapes
    assert (size, size) in shapes
    assert len(set(shapes)) == len(shapes)
    for height, width in shapes:
        assert height % step == width % step == 0
        assert (width, height) in shapes
        assert max(height, width) <= ratio * min(height, width)
        assert size**2 - step * max(height, width) < height * width <= size**2  # no step more would fit
    ratios = [height / width for height, width in shapes]
    assert ratios == sorted(ratios)


def test_an_image_goes_to_the_nearest_ratio():
    buckets = Buckets(512, 64, 3.0)
    draw = np.random.default_rng(0)
    sizes = draw.integers(100, 3000, (500, 2))
    shapes = np.array(buckets.shapes)
    distances = np.abs(np.log(sizes[:, :1] / sizes[:, 1:]) - np.log(shapes[:, 0] / shapes[:, 1]))
    assert np.array_equal(buckets.assign(sizes).bucket, distances.argmin(axis=1))


def painted(height, width):
    """An image whose red and green say where a pixel lies, as fractions of the height and the width."""
    down, across = (np.arange(side) + 0.5 for side in (height, width))
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.rint(255 * down / height)[:, None]
    image[..., 1] = np.rint(255 * across / width)[None]
    return image


@pytest.mark.parametrize("position", ["centre", "random"])
@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((150, 400), (96, 128)),
        ((300, 200), (128, 64)),
        ((333, 500), (200, 200)),
        ((40, 50), (64, 96)),
        ((200, 100), (128, 64)),
    ],
)
def test_the_fields_state_what_was_cut_and_nothing_is_distorted(size, target, position):
    example = {"image": painted(*size), "index": np.int32(0)}
    for seed in range(4):
        found = Cover(*target, position)(example, np.random.default_rng(seed))
        assert found["image"].shape == (*target, 3)
        assert found["original_size"].tolist() == list(size)
        assert found["target_size"].tolist() == list(target)
        assert {found[name].dtype for name in ("original_size", "crop", "target_size")} == {
            np.dtype("float32")
        }
        scale = max(target[0] / size[0], target[1] / size[1])  # one factor for both axes
        for axis, channel in ((0, 0), (1, 1)):
            place = found["crop"][axis] + np.arange(target[axis]) + 0.5
            expected = 255 * place / (scale * size[axis])
            line = found["image"][..., channel].mean(axis=1 - axis)
            assert np.abs(line - expected)[2:-2].max() < 1.5
    resized = covering(size, target)
    if position == "centre":
        assert found["crop"].tolist() == [(resized[i] - target[i]) // 2 for i in (0, 1)]


def test_a_random_crop_reaches_both_ends_and_a_mirrored_one_is_stated_as_it_is():
    wide = {"image": painted(64, 80), "index": np.int32(0)}
    crops = [tuple(Cover(64, 64, "random")(wide, np.random.default_rng(i))["crop"]) for i in range(200)]
    assert {left for _, left in crops} == set(range(17))
    pipeline = Pipeline(_One(wide["image"]), (HorizontalFlip(1.0),), buckets=Buckets(64, 64, 1, "random"))
    batch = take(pipeline, 4, 1, 0)[0]
    for image, (_, left) in zip(batch["image"], batch["crop"], strict=True):
        np.testing.assert_array_equal(image, wide["image"][:, ::-1][:, int(left) : int(left) + 64])


@dataclasses.dataclass(frozen=True, eq=False)
class _One:
    image: np.ndarray
    image_shape = (None, None, 3)
    num_classes = None

    def open(self):
        return self

    def __len__(self):
        return 1

    def __getitem__(self, i):
        return {"image": self.image, "index": np.int32(i)}


def test_what_is_cut_and_enlarged_is_counted():
    sizes = np.array([[16, 16], [32, 64], [8, 8], [16, 160], [0, 0]])
    found = Buckets(16, 16, 1.0).assign(sizes)
    assert found.bucket.tolist() == [0, 0, 0, 0, LEFT_OUT]
    np.testing.assert_allclose(found.scale[:4], [1, 0.5, 2, 1])
    np.testing.assert_allclose(found.cut[:4], [0, 0.5, 0, 0.9])
    chosen = Buckets(16, 16, 1.0, small="leave_out", max_cut=0.5).assign(sizes)
    assert chosen.bucket.tolist() == [0, 0, LEFT_OUT, LEFT_OUT, LEFT_OUT]


def test_a_bucket_without_images_is_none():
    groups = SMALL.assign(np.array([[30, 30], [40, 40], [60, 20]])).groups()
    assert [group.indices.tolist() for group in groups] == [[0, 1], [2]]
    assert len(SMALL.shapes) > 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"size": 1000}, r"size=1000: expected a multiple of step=64, got 1000. Fix: use 960 or 1024"),
        ({"size": 32}, "use 64, or another step"),
        ({"step": 0}, "step"),
        ({"max_ratio": 0.5}, "max_ratio"),
        ({"max_cut": 1.5}, "max_cut"),
        ({"small": "drop"}, "small"),
        ({"rare": "drop"}, "rare"),
        ({"position": "top"}, "position"),
    ],
)
def test_fields_out_of_range_are_refused(fields, words):
    with pytest.raises(UserError, match=words):
        Buckets(**fields).cover()
