"""Buckets: which images share a batch, and in which order."""

import dataclasses

import numpy as np
import pytest

from jaxdiff.data.buckets import Buckets, sizes_of
from jaxdiff.data.conditions import Degrade
from jaxdiff.data.degradations import Downsample
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.transforms import Cover, HorizontalFlip
from jaxdiff.errors import UserError
from tests.data.many_shapes import SMALL, Many, take


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def a_pipeline(**options):
    buckets = dataclasses.replace(SMALL, position="random")
    low = Degrade("low_res", Downsample(2))
    return Pipeline(Many(), (HorizontalFlip(),), (low,), buckets=buckets, **options)


BATCH, STEPS = 8, 23  # 5 epochs


@pytest.fixture(scope="module")
def alone():
    """The batches of one uninterrupted process."""
    found = take(a_pipeline(), BATCH, STEPS, 3)
    assert len({batch["image"].shape for batch in found}) > 3
    return found


@pytest.mark.spread(1)
@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_together_read_the_batches_of_one(alone, count, cache):
    parts = [take(a_pipeline(cache=cache), BATCH, STEPS, 3, 0, i, count) for i in range(count)]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, alone)


@pytest.mark.spread(2)
@pytest.mark.parametrize(("start", "count", "threads"), [(1, 1, 0), (7, 4, 2), (12, 2, 1), (22, 1, 3)])
def test_a_run_resumed_within_an_epoch_reads_the_batches_of_an_uninterrupted_one(
    alone, start, count, threads
):
    for i in range(count):
        rows = slice(i * BATCH // count, (i + 1) * BATCH // count)
        rest = take(a_pipeline(threads=threads), BATCH, STEPS - start, 3, start, i, count)
        assert_same(rest, [{name: batch[name][rows] for name in batch} for batch in alone[start:]])


def test_each_batch_is_of_one_bucket_and_each_image_is_in_its_own(alone):
    assignment = SMALL.assign(sizes_of(Many()))
    for batch in alone:
        shape = batch["image"].shape[1:3]
        assert {SMALL.shapes[number] for number in assignment.bucket[batch["index"]]} == {shape}
        assert batch["low_res"].shape[1:3] == (shape[0] // 2, shape[1] // 2)


def test_every_image_comes_equally_often():
    """n steps are as many epochs as a batch has images, for n images."""
    for seed in (0, 5):
        batches = take(Pipeline(Many(), buckets=SMALL, threads=0), 4, Many().n, seed)
        counts = np.bincount(np.concatenate([batch["index"] for batch in batches]), minlength=Many().n)
        assert counts.tolist() == [4] * Many().n


def test_within_a_bucket_no_image_returns_before_all_others_have_come():
    seen = {}
    for batch in take(Pipeline(Many(), buckets=SMALL, threads=0), 4, 30, 0):
        seen.setdefault(batch["image"].shape, []).extend(batch["index"].tolist())
    sizes = {(*group.shape, 3): len(group.indices) for group in SMALL.assign(sizes_of(Many())).groups()}
    for (_, *shape), order in seen.items():
        n = sizes[tuple(shape)]
        for first in range(0, len(order) - n + 1, n):
            assert len(set(order[first : first + n])) == n


def test_buckets_are_spread_evenly_over_the_steps():
    counts = {group.shape: len(group.indices) for group in SMALL.assign(sizes_of(Many())).groups()}
    shapes = [batch["image"].shape[1:3] for batch in take(Pipeline(Many(), buckets=SMALL), 4, 37, 1)]
    for shape, count in counts.items():
        for steps in range(1, 38):
            assert abs(shapes[:steps].count(shape) - steps * count / 37) < 2


def test_orders_differ_by_seed_and_epoch():
    orders = [
        tuple(
            np.concatenate([batch["index"] for batch in take(Pipeline(Many(), buckets=SMALL), 4, 30, seed)])
        )
        for seed in range(3)
    ]
    assert len(set(orders)) == 3


def test_one_bucket_is_the_pipeline_without_buckets_up_to_the_seed_of_its_order():
    square = Buckets(size=16, step=4, max_ratio=1.0)
    plain = Pipeline(Many(), conditions=(Cover(16, 16),), shuffle=False)
    assert_same(
        take(Pipeline(Many(), buckets=square, shuffle=False), 8, 9, 0),
        take(plain, 8, 9, 0),
    )


def test_small_images_and_rare_buckets_are_said_or_left_out():
    tiny = Buckets(64, 16, 2.0)
    notes = Pipeline(Many(), buckets=tiny).notes(12)
    assert "37 of 37 images" in notes[0]
    enlarged = sum(tiny.assign(sizes_of(Many())).scale > 1)
    assert notes[1].startswith(f"buckets: {enlarged} images are smaller than their bucket and are enlarged")
    counts = [len(group.indices) for group in tiny.assign(sizes_of(Many())).groups()]
    rare = [count for count in counts if count < 12]
    assert f"{len(rare)} have fewer images ({sum(rare)} in all) than a batch of 12" in notes[2]

    without = dataclasses.replace(tiny, rare="leave_out")
    assert len(Pipeline(Many(), buckets=without).prototypes(12)) == len(counts) - len(rare)
    assert len(Pipeline(Many(), buckets=without).notes(12)) == 2
    large = dataclasses.replace(tiny, small="leave_out")
    shown = {int(i) for batch in take(Pipeline(Many(), buckets=large), 4, 20, 0) for i in batch["index"]}
    assert shown
    assert not shown & set(np.flatnonzero(tiny.assign(sizes_of(Many())).scale > 1))
    assert Pipeline(Many()).notes(8) == []


def test_outside_of_training_batches_images_have_the_square_shape():
    pipeline = Pipeline(Many(), buckets=SMALL)
    assert pipeline.example()["image"].shape == (16, 16, 3)
    whole = pipeline.all()
    assert whole["image"].shape == (37, 16, 16, 3)
    assert np.array_equal(whole["index"], np.arange(37))
    assert np.array_equal(pipeline.stored().rows(np.array([3, 30]))["image"], whole["image"][[3, 30]])
    assert np.array_equal(whole["original_size"], sizes_of(Many()))
    assert {example["image"].shape[:2] for example in pipeline.prototypes(1)} == {
        group.shape for group in SMALL.assign(sizes_of(Many())).groups()
    }


def test_nothing_left_is_an_error():
    with pytest.raises(UserError, match="expected images for at least one bucket, got none"):
        Pipeline(Many(), buckets=Buckets(1024, 64, small="leave_out")).notes(4)
    with pytest.raises(UserError, match=r"at least one bucket, got at most \d+ in one"):
        Pipeline(Many(), buckets=Buckets(16, 4, rare="leave_out")).notes(100)
