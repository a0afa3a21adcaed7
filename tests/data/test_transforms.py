"""Crops, flips and sizes change all images of an example alike, and draw from its own generator."""

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data import images
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.data.transforms import CentreCrop, HorizontalFlip, RandomCrop, Resize
from jaxdiff.errors import UserError


def example(height=12, width=20):
    """An image of its own coordinates, a mask that is a function of it, and fields that are not images."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    image = np.stack([y, x, y + x], axis=-1)
    return {
        "image": image,
        "index": np.int32(4),
        "mask": image[..., 2:] * 2.0,
        "tokens": np.arange(6.0).reshape(2, 3),
        "text": np.array("a"),
    }


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("transform", [HorizontalFlip(1.0), RandomCrop(5), CentreCrop(5)], ids=str)
def test_images_change_together_and_nothing_else_does(transform):
    before, after = example(), transform(example(), rng(3))
    assert np.array_equal(after["mask"], after["image"][..., 2:] * 2.0)
    assert not np.array_equal(after["image"], before["image"])
    for name in ("index", "tokens", "text"):
        assert np.array_equal(after[name], before[name])


def test_crops_are_uniform_over_all_positions_and_are_parts_of_the_image():
    corners = []
    for seed in range(3000):
        crop = RandomCrop(8)(example(), rng(seed))["image"]
        top, left = crop[0, 0, :2]
        assert np.array_equal(crop, example()["image"][top : top + 8, left : left + 8])
        corners.append(top * 13 + left)
    counts = np.bincount(corners, minlength=65)
    assert len(counts) == 65, "5 x 13 positions"
    assert ((counts - 3000 / 65) ** 2 / (3000 / 65)).sum() < 110, "chi-squared with 64 degrees: 1 in 3000"


@pytest.mark.parametrize(("size", "corner"), [(12, (0, 4)), (8, (2, 6)), (7, (2, 6))])
def test_a_centre_crop_is_in_the_middle(size, corner):
    crop = CentreCrop(size)(example(), rng())["image"]
    assert crop.shape == (size, size, 3)
    assert tuple(crop[0, 0, :2]) == corner


def test_a_crop_of_full_size_is_the_image():
    square = example(12, 12)
    assert np.array_equal(RandomCrop(12)(square, rng())["image"], square["image"])


@pytest.mark.parametrize("method", ["nearest", "area", "bilinear", "bicubic", "lanczos"])
def test_resize_matches_pillow_and_keeps_the_aspect(method):
    image = rng().integers(0, 256, (30, 41, 3), np.uint8)
    found = Resize(10, method)({"image": image, "index": np.int32(0)}, rng())["image"]
    name = {"area": "BOX"}.get(method, method.upper())
    expected = Image.fromarray(image).resize((14, 10), Image.Resampling[name])
    assert np.array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("transform", [RandomCrop(4), CentreCrop(4)], ids=str)
def test_images_of_different_sizes_are_refused(transform):
    given = {**example(), "low_res": np.zeros((3, 5, 3), np.uint8)}
    with pytest.raises(
        UserError,
        match=r"index=4: .*, got image 12 x 20, mask 12 x 20, low_res 3 x 5",
    ):
        transform(given, rng())


@pytest.mark.parametrize("transform", [RandomCrop(13), CentreCrop(13)], ids=str)
def test_crops_that_do_not_fit_are_refused(transform):
    with pytest.raises(UserError, match=r"size=13: .*example 4, got 12 x 20"):
        transform(example(), rng())


def test_a_very_long_image_is_refused_before_it_is_resized():
    long = {"image": np.zeros((1, 20_000, 3), np.uint8), "index": np.int32(4)}
    with pytest.raises(UserError, match=r"index=4: .* shorter side of 256, got 1 x 20000 pixels"):
        Resize(256)(long, rng())
    assert Resize(4)(long, rng())["image"].shape == (4, 80_000, 3)


@pytest.mark.parametrize("cls", [RandomCrop, CentreCrop, Resize])
def test_sizes_are_positive(cls):
    with pytest.raises(UserError, match="size=0"):
        cls(0)


@pytest.mark.slow
def test_crops_in_a_pipeline_do_not_depend_on_the_number_of_processes():
    pipeline = Pipeline(Tfds("digits"), transforms=(RandomCrop(5), Resize(10)), cache=True)
    alone = next(pipeline.batches(8, seed=1))["image"]
    parts = [next(pipeline.batches(8, 1, 0, i, 4))["image"] for i in range(4)]
    assert alone.shape == (8, 10, 10, 1)
    assert np.array_equal(np.concatenate(parts), alone)


def test_resized_bytes_stay_bytes():
    assert images.resize(np.zeros((4, 4, 2), np.uint8), (3, 5), "bicubic").shape == (3, 5, 2)
