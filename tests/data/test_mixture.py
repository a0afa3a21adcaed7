"""A mixture keeps the weights of its sources, has every example, and its order is a function of (seed, step)."""

import dataclasses
import itertools

import numpy as np
import pytest

from jaxdiff.config import build, from_json, spec, to_json
from jaxdiff.data.mixture import Mixture
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.errors import UserError


@dataclasses.dataclass(frozen=True)
class Levels:
    """`n` images of one pixel, with grey levels `first`, `first` + 1, ...; the extra field counts them."""

    first: int
    n: int
    num_classes: int | None = None
    width: int = 1
    field: str = "extra"
    name: str = "levels"

    def open(self):
        return LevelExamples(self)

    def fingerprint(self):
        return {"name": self.name, "length": self.n}


class LevelExamples:
    def __init__(self, block):
        self.block, self.num_classes, self.image_shape = block, block.num_classes, (1, block.width, 1)

    def __len__(self):
        return self.block.n

    def __getitem__(self, index):
        image = np.full((1, self.block.width, 1), (self.block.first + index) % 256, np.uint8)
        return {"image": image, "index": np.int32(index), self.block.field: np.int32(index)}


def levels(examples):
    return np.array([int(examples[i]["image"][0, 0, 0]) for i in range(len(examples))])


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (0.2, 0.8), (0.31, 0.69)])
def test_an_epoch_keeps_the_weights_throughout_and_has_every_example(weights):
    seen = levels(Mixture((Levels(0, 10), Levels(100, 37)), weights).open())
    assert set(seen) == {*range(10), *range(100, 137)}
    fraction = weights[0] / sum(weights)
    first = np.cumsum(seen < 100)
    assert np.abs(first - fraction * np.arange(1, len(seen) + 1)).max() < 1.5
    shorter = len(seen) - 2
    counts = [(seen[:shorter] < 100).sum() / 10, (seen[:shorter] >= 100).sum() / 37]
    assert min(counts) <= 1, "an epoch is no longer than it must be"
    for part, n in ((seen[seen < 100], 10), (seen[seen >= 100] - 100, 37)):
        assert np.array_equal(part, np.arange(len(part)) % n), "each source is read in its own order"


def test_without_weights_every_example_comes_once():
    seen = levels(Mixture((Levels(0, 10), Levels(100, 37), Levels(200, 5))).open())
    assert sorted(seen) == [*range(10), *range(100, 137), *range(200, 205)]
    for first, n in ((0, 10), (100, 37), (200, 5)):
        counts = np.cumsum((seen >= first) & (seen < first + n))
        assert np.abs(counts - n / 52 * np.arange(1, 53)).max() < 2, "evenly interleaved"


def test_no_example_is_lost_where_sizes_are_not_round():
    sizes = 12_345, 1_001, 77
    examples = Mixture(tuple(Levels(0, n) for n in sizes)).open()
    assert len(examples) == sum(sizes)
    found = [
        (int(one["origin"]), int(one["extra"])) for one in map(examples.__getitem__, range(len(examples)))
    ]
    assert sorted(found) == [(origin, i) for origin, n in enumerate(sizes) for i in range(n)]


def test_index_and_origin_name_the_example():
    examples = Mixture((Levels(0, 10), Levels(100, 37)), (1.0, 2.0)).open()
    for i in range(len(examples)):
        example = examples[i]
        assert (example["index"], example["origin"]) == (i, int(example["image"][0, 0, 0] >= 100))


@pytest.mark.parametrize("start", [0, 7])
def test_order_is_a_function_of_seed_and_step_for_any_number_of_processes(start):
    pipeline = Pipeline(Mixture((Levels(0, 10), Levels(100, 37)), (1.0, 3.0)))

    def take(*arguments, n=20):
        iterator = pipeline.batches(*arguments)
        batches = list(itertools.islice(iterator, n))
        iterator.close()
        return np.stack([batch["index"] for batch in batches])

    whole = take(8, 1)
    parts = [take(8, 1, start, i, 2, n=20 - start) for i in range(2)]
    assert np.array_equal(np.concatenate(parts, axis=1), whole[start:])
    epochs = whole.reshape(-1)[:147].reshape(3, 49)  # 37 and a third of that
    assert np.array_equal(np.sort(epochs), np.tile(np.arange(49), (3, 1)))
    assert not np.array_equal(epochs[0], epochs[1])


def test_sources_may_differ_in_size_but_not_in_classes_or_fields():
    assert Mixture((Levels(0, 3), Levels(0, 3, width=2))).open().image_shape == (1, None, 1)
    with pytest.raises(UserError, match=r"sources\[1\].*the classes of the first source, 3, got 4"):
        Mixture((Levels(0, 3, num_classes=3), Levels(0, 3, num_classes=4))).open()
    with pytest.raises(UserError, match=r"sources\[1\].*the fields of the first source"):
        Mixture((Levels(0, 3), Levels(0, 3, field="text"))).open()
    with pytest.raises(UserError, match=r"sources\[1\].*no examples"):
        Mixture((Levels(0, 3), Levels(0, 0))).open()


def test_mixtures_of_stored_data_sets_have_their_metadata():
    mixture = Mixture((Tfds("digits", "train"), Tfds("digits", "test")), (1.0, 1.0))
    examples = mixture.open()
    assert (examples.image_shape, examples.num_classes, len(examples)) == ((8, 8, 1), 10, 3000)
    assert mixture.name == "digits + digits"
    found = mixture.fingerprint()
    assert found["length"] == 3000
    assert [part["split"] for part in found["sources"]] == ["train", "test"]
    batch = next(Pipeline(mixture, threads=0).batches(64, seed=0))
    assert 16 < batch["origin"].sum() < 48


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, 1.0, 1.0)])
def test_invalid_weights_are_refused(weights):
    with pytest.raises(UserError, match="weights"):
        Mixture((Levels(0, 3), Levels(0, 3)), weights)


def test_no_sources_are_refused():
    with pytest.raises(UserError, match="sources"):
        Mixture(())


def test_blocks_survive_json():
    written = spec(Mixture, sources=(spec(Tfds, name="digits"), spec(Tfds, name="scenes")), weights=(1, 2))
    expected = Mixture((Tfds("digits"), Tfds("scenes")), (1.0, 2.0))
    assert build(from_json(to_json(written)), packages=("jaxdiff",)) == expected


def test_each_source_has_its_weight_in_the_loss():
    """DreamBooth's prior preservation: as many examples of the class as of the subject, with another weight."""
    mixture = Mixture((Levels(0, 3), Levels(100, 50)), weights=(1.0, 1.0), loss_weights=(1.0, 0.25))
    examples = mixture.open()
    for i in range(len(examples)):
        example = examples[i]
        assert example["loss_weight"] == (1.0, 0.25)[int(example["origin"])]
        assert example["loss_weight"].dtype == np.float32
    batch = next(iter(Pipeline(mixture).batches(100, seed=0)))
    assert np.isclose(np.mean(batch["loss_weight"]), 0.625)
    assert "loss_weight" not in Mixture(mixture.sources).open()[0]
    with pytest.raises(UserError, match=r"loss_weights=.*expected 2 numbers >= 0"):
        Mixture(mixture.sources, loss_weights=(1.0, -1.0))
