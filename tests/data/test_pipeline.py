"""The order of the data is a function of (seed, step), for any number of processes or threads."""

import dataclasses
import itertools

import numpy as np
import pytest

from jaxdiff.data.buckets import Buckets
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.data.transforms import HorizontalFlip
from jaxdiff.errors import UserError


@dataclasses.dataclass(frozen=True)
class Toy:
    """`n` random images with labels: a source as a user would write one."""

    n: int = 30
    labels: int = 3
    num_classes: int = 3
    sizes: int = 1

    def open(self):
        return ToyExamples(self.n, self.labels, self.num_classes, self.sizes)


class ToyExamples:
    image_shape = (None, None, 1)

    def __init__(self, n, labels, num_classes, sizes):
        self.n, self.labels, self.num_classes, self.sizes = n, labels, num_classes, sizes

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        size = 4 + i % self.sizes
        image = np.random.default_rng(i).integers(0, 256, (size, size, 1), np.uint8)
        return {"image": image, "index": np.int32(i), "label": np.int32(i % self.labels)}


@dataclasses.dataclass(frozen=True)
class Noisy:
    """An augmentation that replaces every pixel, so that equal results mean equal generators."""

    def __call__(self, example, rng):
        return {**example, "image": rng.integers(0, 256, example["image"].shape, np.uint8)}


def take(iterator, n):
    batches = list(itertools.islice(iterator, n))
    iterator.close()
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_read_the_one_global_batch(processes, cache):
    pipeline = Pipeline(Toy(), transforms=(Noisy(),), cache=cache)
    steps = 9  # batches of 8 examples: 2.4 epochs of 30
    alone = take(pipeline.batches(8, seed=1), steps)
    parts = [take(pipeline.batches(8, 1, 0, i, processes), steps) for i in range(processes)]
    joined = {name: np.concatenate([part[name] for part in parts], axis=1) for name in alone}
    assert_same(joined, alone)


def test_processes_read_the_one_global_batch_of_digits():
    pipeline = Pipeline(Tfds("digits", split="test"), transforms=(HorizontalFlip(),), cache=True)
    steps = 10  # batches of 64: 2.2 epochs
    alone = take(pipeline.batches(64, seed=0), steps)
    for processes in (2, 4):
        parts = [take(pipeline.batches(64, 0, 0, i, processes), steps) for i in range(processes)]
        assert_same({name: np.concatenate([part[name] for part in parts], axis=1) for name in alone}, alone)


@pytest.mark.parametrize("first", [1, 4, 13])
def test_starting_at_a_step_is_skipping_to_it(first):
    pipeline = Pipeline(Toy(), transforms=(Noisy(),))
    for process in range(2):
        whole = take(pipeline.batches(8, 0, 0, process, 2), first + 3)
        rest = take(pipeline.batches(8, 0, first, process, 2), 3)
        assert_same(rest, {name: rows[first:] for name, rows in whole.items()})


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_threads_and_cache_change_nothing(threads):
    plain = Pipeline(Toy(), transforms=(Noisy(),), threads=0)
    other = Pipeline(Toy(), transforms=(Noisy(),), threads=threads, cache=True)
    assert_same(take(other.batches(7, seed=5), 9), take(plain.batches(7, seed=5), 9))


def test_each_epoch_is_a_new_permutation_also_where_batches_straddle_it():
    order = take(Pipeline(Toy()).batches(8, seed=0), 15)["index"].reshape(-1)[:120].reshape(4, 30)
    assert np.array_equal(np.sort(order), np.tile(np.arange(30), (4, 1)))
    assert len({tuple(epoch) for epoch in order}) == 4


def test_orders_of_different_seeds_differ():
    epochs = {seed: take(Pipeline(Toy()).batches(30, seed), 3)["index"] for seed in range(5)}
    assert len({tuple(epoch) for order in epochs.values() for epoch in order}) == 15, "no epoch returns"


def test_without_shuffle_the_order_is_the_files():
    order = take(Pipeline(Toy(), shuffle=False).batches(8, seed=0), 15)["index"]
    assert np.array_equal(order.reshape(-1), np.arange(120) % 30)


def test_index_names_the_record():
    source = Tfds("digits").open()
    batch = take(Pipeline(Tfds("digits"), cache=True).batches(64, seed=3), 1)
    for image, label, index in zip(batch["image"][0], batch["label"][0], batch["index"][0], strict=True):
        record = source[int(index)]
        assert np.array_equal(image, record["image"])
        assert label == record["label"]


def test_a_batch_has_the_stored_types():
    batch = next(Pipeline(Toy()).batches(8, seed=0))
    assert {name: value.dtype for name, value in batch.items()} == {
        "image": np.uint8,
        "index": np.int32,
        "label": np.int32,
    }
    stored = Pipeline(Toy()).all()
    np.testing.assert_array_equal(batch["image"], stored["image"][batch["index"]])


def test_draws_differ_between_examples_epochs_transforms_and_seeds():
    def draw(seed, *transforms):
        return take(Pipeline(Toy(4), transforms=transforms).batches(4, seed), 5)["image"].reshape(20, -1)

    runs = [draw(0, Noisy()), draw(1, Noisy()), draw(0, Noisy(), Noisy())]
    assert len({row.tobytes() for run in runs for row in run}) == 60


@pytest.mark.spread(2)
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flip_mirrors_left_and_right_with_its_probability(probability):
    stored = Pipeline(Toy()).all()["image"]
    pipeline = Pipeline(Toy(), transforms=(HorizontalFlip(probability),), cache=True, threads=0)
    batch = take(pipeline.batches(500, seed=0), 1)
    image = batch["image"].reshape(-1, 4, 4, 1)
    original = stored[batch["index"].reshape(-1)]
    same = (image == original).all(axis=(1, 2, 3))
    mirrored = (image == original[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(mirrored.mean() - probability) <= 4 * np.sqrt(probability * (1 - probability) / 500)


def test_two_flips_are_drawn_independently():
    pipeline = Pipeline(Toy(), transforms=(HorizontalFlip(), HorizontalFlip()), cache=True, threads=0)
    batch = take(pipeline.batches(500, seed=0), 1)
    stored = Pipeline(Toy()).all()["image"][batch["index"]]
    same = (batch["image"] == stored).all(axis=(2, 3, 4))
    assert 0.4 < same.mean() < 0.6


def test_an_epoch_in_order_drops_nothing():
    pipeline = Pipeline(Toy(), transforms=(Noisy(),))
    parts = list(pipeline.epoch(8))
    assert [len(part["index"]) for part in parts] == [8, 8, 8, 6]
    whole = pipeline.all()
    assert_same({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)
    assert np.array_equal(whole["index"], np.arange(30))
    assert np.array_equal(whole["image"], np.stack([Toy().open()[i]["image"] for i in range(30)]))


def test_a_batch_may_be_larger_than_the_data_set():
    order = take(Pipeline(Toy(3)).batches(9, seed=0), 1)["index"].reshape(3, 3)
    assert np.array_equal(np.sort(order), np.tile(np.arange(3), (3, 1)))


@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        ((10, 0, 0, 0, 4), ("batch_size=10", "8 or 12")),
        ((3, 0, 0, 0, 4), ("batch_size=3", "use 4")),
        ((0, 0), ("batch_size",)),
        ((8, -1), ("seed",)),
        ((8, 0, -1), ("start_step",)),
        ((8, 0, 0, 2, 2), ("process_index",)),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_the_first_batch(arguments, phrases):
    with pytest.raises(UserError) as error:
        Pipeline(Toy()).batches(*arguments)
    for phrase in phrases:
        assert phrase in str(error.value)


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize(
    ("source", "found"),
    [
        (Toy(labels=5), r"expected a label in \[0, 2\], got [34]"),
        (Toy(sizes=2), r"expected an image of uint8 .*, got uint8 (\(5, 5, 1\)|\(4, 4, 1\))"),
    ],
)
def test_an_example_unlike_the_declared_ones_is_named(source, found, threads):
    with pytest.raises(UserError, match=rf"index=\d+: {found}"):
        next(Pipeline(source, threads=threads).batches(30, seed=0))
    with pytest.raises(UserError, match=rf"index=\d+: {found}"):
        Pipeline(source).all()


def test_no_examples_is_an_error():
    with pytest.raises(UserError, match="no examples"):
        Pipeline(Toy(0)).batches(8, seed=0)


def test_a_transform_cannot_change_the_cache():
    class Careless:
        def __call__(self, example, rng):
            example["image"][:] = 0
            return example

    with pytest.raises(ValueError, match="read-only"):
        next(Pipeline(Toy(), transforms=(Careless(),), cache=True, threads=0).batches(8, seed=0))


@pytest.mark.parametrize(("field", "value"), [("threads", -1), ("prefetch", 0)])
def test_fields_out_of_range_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        Pipeline(Toy(), **{field: value})


@pytest.mark.parametrize("probability", [-0.1, 1.5])
def test_a_probability_is_from_0_to_1(probability):
    with pytest.raises(UserError, match="probability"):
        HorizontalFlip(probability)


def test_a_cache_has_no_buckets():
    with pytest.raises(UserError, match="encoded='caches/x': expected no buckets"):
        Pipeline(Tfds("digits"), buckets=Buckets(), encoded="caches/x")
