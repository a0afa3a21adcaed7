"""Fields computed from an image follow it through crops and flips, in training and in testing."""

import itertools

import numpy as np
import pytest

from jaxdiff.config import build, from_json, spec, to_json
from jaxdiff.data import images
from jaxdiff.data.conditions import Choice, Degrade
from jaxdiff.data.degradations import Blur, Downsample, Edges, GaussianNoise, Grayscale
from jaxdiff.data.masks import BoxMask, Hint, Masked, OneOf, Uncrop
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.data.transforms import CentreCrop, HorizontalFlip, RandomCrop
from jaxdiff.errors import UserError


def first(iterator):
    batch = next(iterator)
    iterator.close()
    return batch


def example(size=8):
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    return {"image": image, "index": np.int32(3)}


def test_the_low_resolution_is_that_of_the_cropped_and_mirrored_image():
    pipeline = Pipeline(
        Tfds("photos/64"),
        transforms=(RandomCrop(32), HorizontalFlip()),
        conditions=(Degrade("low_res", Downsample(4)),),
    )
    batch = first(pipeline.batches(16, seed=0))
    assert batch["image"].shape == (16, 32, 32, 3)
    assert batch["low_res"].dtype == np.uint8
    means = batch["image"].reshape(16, 8, 4, 8, 4, 3).mean(axis=(2, 4))
    assert np.abs(batch["low_res"] - means).max() < 2 * 1.01


def test_test_data_have_conditions_with_the_same_draws_each_time():
    conditions = CentreCrop(6), Degrade("noisy", GaussianNoise()), Degrade("shown", Masked(BoxMask()))
    pipeline = Pipeline(Tfds("digits", "test"), transforms=(RandomCrop(2),), conditions=conditions)
    whole = pipeline.all()
    stored = Pipeline(Tfds("digits", "test")).all()["image"]
    assert np.array_equal(whole["image"], stored[:, 1:7, 1:7])
    assert whole["noisy"].shape == (297, 6, 6, 1)
    assert whole["shown"].shape == (297, 6, 6, 2)
    parts = list(pipeline.epoch(100))
    for name, value in whole.items():
        assert np.array_equal(np.concatenate([part[name] for part in parts]), value), name
    residuals = whole["noisy"].astype(int) - whole["image"]
    assert len(np.unique(residuals.reshape(297, -1)[:, 14:22], axis=0)) > 250, (
        "each example has its own draws"
    )


def test_draws_of_a_batch_do_not_depend_on_the_number_of_processes():
    pipeline = Pipeline(Tfds("digits"), conditions=(Degrade("noisy", GaussianNoise()),), cache=True)
    alone = first(pipeline.batches(8, seed=2, start_step=3))
    parts = [first(pipeline.batches(8, 2, 3, i, 2)) for i in range(2)]
    for name, value in alone.items():
        assert np.array_equal(np.concatenate([part[name] for part in parts]), value), name


def test_a_choice_draws_by_weight_and_stores_what_it_drew():
    degradations = Grayscale(3), Masked(BoxMask(), channel=False), Blur((1.0, 1.0))
    choice = Choice("source", degradations, weights=(1.0, 2.0, 1.0))
    drawn = [choice(example(), np.random.default_rng(i)) for i in range(400)]
    tasks = np.array([one["task"] for one in drawn])
    assert np.abs(np.bincount(tasks) / 400 - (0.25, 0.5, 0.25)).max() < 0.08
    assert {one["source"].dtype for one in drawn} == {np.dtype(np.float32)}
    assert {one["source"].shape for one in drawn} == {(8, 8, 3)}
    for task, fixed in ((0, degradations[0]), (2, degradations[2])):
        one = drawn[np.flatnonzero(tasks == task)[0]]
        assert np.array_equal(one["source"], images.to_float(fixed(one["image"], np.random.default_rng())))
        assert one["task"].dtype == np.int32
    assert set(Choice("source", (Grayscale(),), task_field=None)(example(), np.random.default_rng())) == {
        "image",
        "index",
        "source",
    }


def test_hints_and_masked_images_share_one_field():
    """Where alpha is 1, the field equals the target image after crops and flips."""
    tasks = (Hint(Grayscale()), Masked(BoxMask(), fill=0.0), Masked(Uncrop(), fill=0.0), Hint(Edges()))
    pipeline = Pipeline(
        Tfds("photos/64"), (RandomCrop(32), HorizontalFlip()), conditions=(Choice("source", tasks),)
    )
    batch = first(pipeline.batches(32, seed=0))
    source, known = batch["source"], batch["source"][..., 3] == 1
    assert (source.shape, source.dtype) == ((32, 32, 32, 4), np.float32)
    assert set(batch["task"]) == {0, 1, 2, 3}
    np.testing.assert_array_equal(known.any(axis=(1, 2)), (batch["task"] == 1) | (batch["task"] == 2))
    np.testing.assert_array_equal(source[known][:, :3], images.to_float(batch["image"][known]))
    np.testing.assert_array_equal(source[~known][:, 3], -1)


def test_choices_of_different_shapes_are_refused_by_name():
    choice = Choice("source", (Grayscale(1), Edges(channels=3)))
    pipeline = Pipeline(Tfds("digits"), conditions=(choice,))
    with pytest.raises(UserError, match="source"):
        list(itertools.islice(pipeline.batches(16, seed=0), 1))


def test_bytes_and_floats_are_not_mixed():
    class Undecided:
        def __call__(self, image, rng):
            return image if rng.random() < 0.5 else images.to_float(image)

    with pytest.raises(
        UserError, match=r"low_res=.*expected (uint8|float32)\[8, 8, 1\].*, got (uint8|float32)\[8, 8, 1\] in"
    ):
        Pipeline(Tfds("digits"), conditions=(Degrade("low_res", Undecided()),)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Degrade("image", Grayscale()), "field='image'"),
        (lambda: Choice("label", (Grayscale(),)), "field='label'"),
        (lambda: Choice("x", (Grayscale(),), task_field="index"), "task_field"),
        (lambda: Choice("x", (Grayscale(),), task_field="x"), "task_field"),
        (lambda: Choice("x", ()), "degradations"),
        (lambda: Choice("x", (Grayscale(),), weights=(1.0, 2.0)), "weights"),
        (lambda: Choice("x", (Grayscale(),), weights=(0.0,)), "weights"),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


MASKED = spec(Masked, mask=spec(OneOf, masks=(spec(BoxMask), spec(Uncrop))))


def test_blocks_survive_json():
    written = spec(
        Pipeline,
        source=spec(Tfds, name="photos/32"),
        conditions=(
            spec(Degrade, field="low_res", degradation=spec(Downsample, factor=2, method="bicubic")),
            spec(Choice, field="source", degradations=(spec(Hint, degradation=spec(Grayscale)), MASKED)),
        ),
    )
    expected = Pipeline(
        Tfds("photos/32"),
        conditions=(
            Degrade("low_res", Downsample(2, "bicubic")),
            Choice("source", (Hint(Grayscale()), Masked(OneOf((BoxMask(), Uncrop()))))),
        ),
    )
    assert build(from_json(to_json(written)), packages=("jaxdiff",)) == expected
