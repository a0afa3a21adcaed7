"""A pipeline with all features reads the same batches with any number of processes, and from any step."""

import dataclasses

import numpy as np
import pytest

from jaxdiff.data.conditions import Choice, Degrade
from jaxdiff.data.degradations import Blur, Bsr, Chain, Downsample, GaussianNoise, Grayscale, Jpeg
from jaxdiff.data.mixture import Mixture
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.text import ByteTokenizer, Tokenize
from jaxdiff.data.transforms import CentreCrop, HorizontalFlip, RandomCrop

BATCH, STEPS = 8, 7  # 2.5 epochs of the mixture


@dataclasses.dataclass(frozen=True)
class Captioned:
    """Images with three captions each."""

    n: int
    first: int
    image_shape = (12, 12, 3)
    num_classes = None

    def open(self):
        return self

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        image = np.random.default_rng(self.first + i).integers(0, 256, self.image_shape, np.uint8)
        texts = np.array([f"{self.first + i}{letter}" for letter in "abc"])
        return {"image": image, "index": np.int32(i), "text": texts}


def a_pipeline(**options):
    mixture = Mixture((Captioned(11, 0), Captioned(5, 100)), (3.0, 2.0))
    degraded = Choice("shown", (Grayscale(3), Blur((0.5, 2.0)), Jpeg((10, 60))), weights=(1.0, 2.0, 1.0))
    blurred = Chain((Blur((0.4, 1.2), probability=0.5), Downsample(4)))
    return Pipeline(
        mixture,
        transforms=(RandomCrop(10), HorizontalFlip(), Tokenize(ByteTokenizer(6))),
        conditions=(CentreCrop(8), degraded, Degrade("low_res", blurred), Degrade("bsr", Bsr(2)),
                    Degrade("noisy", GaussianNoise())),
        **options,
    )  # fmt: skip


def take(start=0, index=0, count=1, steps=STEPS, **options):
    iterator = a_pipeline(**options).batches(BATCH, 3, start, index, count)
    batches = [next(iterator) for _ in range(steps)]
    iterator.close()
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


@pytest.fixture(scope="module")
def alone():
    """The batches of one uninterrupted process."""
    found = take()
    assert sorted(found) == [
        "bsr", "image", "index", "low_res", "noisy", "origin", "shown", "task", "text",
    ]  # fmt: skip
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.spread(2)
@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_all_processes_together_read_the_batches_of_one(alone, count, cache):
    parts = [take(0, i, count, cache=cache) for i in range(count)]
    assert_same({name: np.concatenate([part[name] for part in parts], axis=1) for name in alone}, alone)


@pytest.mark.parametrize(("start", "count", "threads"), [(1, 4, 1), (3, 2, 0), (5, 1, 3), (6, 4, 2)])
def test_a_resumed_run_reads_the_batches_of_an_uninterrupted_one(alone, start, count, threads):
    parts = [take(start, i, count, STEPS - start, threads=threads) for i in range(count)]
    together = {name: np.concatenate([part[name] for part in parts], axis=1) for name in alone}
    assert_same(together, {name: value[start:] for name, value in alone.items()})


def test_draws_differ_between_examples_and_epochs(alone):
    """In another epoch the same image has another crop, other noise and another caption."""
    seen = alone["index"].reshape(-1)
    again = [np.flatnonzero(seen == index) for index in np.unique(seen)]
    assert max(map(len, again)) > 1
    levels = alone["noisy"].astype(np.float32) - (alone["image"] + 1) * 127.5
    for draws, least in ((levels, 1.0), (alone["image"], 0.8)):  # only 18 different crops exist
        rows = draws.reshape(BATCH * STEPS, -1)
        kinds = [len({bytes(rows[position]) for position in positions}) for positions in again]
        differ = [
            count == len(positions) if least == 1 else count > 1
            for count, positions in zip(kinds, again, strict=True)
        ]
        assert np.mean(differ) >= least
    letters = [set(alone["text"].reshape(BATCH * STEPS, -1)[positions].max(axis=1)) for positions in again]
    assert max(map(len, letters)) > 1
    assert set(alone["task"].reshape(-1)) == {0, 1, 2}
    assert 0.2 < np.mean(alone["origin"]) < 0.6
