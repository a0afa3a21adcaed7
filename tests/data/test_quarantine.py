"""Damaged examples in training: named, counted, and replaced by the same others for any number of processes."""

import errno
import itertools
import os
import re

import numpy as np
import pytest

from jaxdiff.data import quarantine
from jaxdiff.data.arrays import Arrays
from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.images import save_png
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.quarantine import Quarantined
from jaxdiff.errors import UserError

COUNT, BAD = 12, 5


@pytest.fixture
def folder(tmp_path):
    """Twelve images, of one grey each; the sixth is cut short."""
    (tmp_path / "cat").mkdir()
    for i in range(COUNT):
        save_png(tmp_path / "cat" / f"{i:02}.png", np.full((8, 8, 1), 10 * i, np.uint8))
    path = tmp_path / "cat" / f"{BAD:02}.png"
    path.write_bytes(path.read_bytes()[:40])
    return tmp_path


def pipeline(folder, **options):
    return Pipeline(ImageFolder(str(folder), 8, 1), **{"max_damaged": 0.1, **options})


def batches(data, count=6, start=0, process=0, processes=1):
    return list(itertools.islice(data.batches(4, 0, start, process, processes), count))


def test_a_damaged_file_is_named_counted_and_replaced_by_the_next_one(folder, caplog):
    seen = np.concatenate([batch["index"] for batch in batches(pipeline(folder), 3)])
    assert sorted(seen) == sorted([*(i for i in range(COUNT) if i != BAD), BAD + 1]), "one epoch"
    (message,) = caplog.messages
    assert message.startswith("cat/05.png: expected a readable image, got a PNG file that is cut short")
    assert message.endswith("(1 of at most 1)")


@pytest.mark.parametrize("start", [1, 4])
def test_a_resumed_run_and_two_processes_read_the_same_batches(folder, start):
    whole = batches(pipeline(folder))
    for one, other in zip(whole[start:], batches(pipeline(folder), 6 - start, start), strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
    halves = [batches(pipeline(folder, max_damaged=0.2), process=i, processes=2) for i in range(2)]
    for one, *parts in zip(whole, *halves, strict=True):
        assert all(np.array_equal(one[name], np.concatenate([p[name] for p in parts])) for name in one)


def test_too_many_damaged_examples_are_an_error_that_names_the_last(folder):
    batches(pipeline(folder, max_damaged=1 / COUNT))  # one of twelve is not above it
    with pytest.raises(
        UserError, match=r"max_damaged=0\.05: .* got 1 of 12, .*cat/05\.png: .*Fix: "
    ) as error:
        batches(pipeline(folder, max_damaged=0.05))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_refused_by_name_and_never_waited_for(folder, make, caplog):
    path = folder / "cat" / "05.png"
    path.unlink()
    make(path)
    batches(pipeline(folder))
    assert caplog.messages[0].startswith("cat/05.png: expected a readable image, got a ")


class Examples:
    """Examples in memory, one of which is replaced."""

    image_shape, num_classes = (4, 4, 1), None

    def __init__(self, odd):
        self._odd = odd

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index == 3 and isinstance(self._odd, Exception):
            raise self._odd
        example = {"image": np.full((4, 4, 1), index, np.uint8), "vector": np.full(3, index, np.float32)}
        return example | (self._odd if index == 3 else {})

    def name_of(self, index):
        return f"part-{index}.record"


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ({"vector": np.array([1, np.nan, np.inf], np.float32)}, "expected finite numbers in vector, got 2"),
        (
            {"image": np.zeros((4, 5, 1), np.uint8)},
            r"expected an image of shape \(4, 4, 1\), got \(4, 5, 1\)",
        ),
        (ValueError("corrupted record"), "expected a readable example, got corrupted record"),
        (FileNotFoundError(errno.ENOENT, "gone"), "expected a readable example, got No such file"),
    ],
    ids=["nan", "shape", "record", "lost"],
)
def test_every_damage_is_named(odd, why, caplog):
    examples = Quarantined(Examples(odd), 0.1)
    assert examples[3]["image"][0, 0, 0] == 4
    assert examples.damaged == {3}
    (message,) = caplog.messages
    assert re.match(f"part-3.record: {why}", message)


def test_no_intact_example_is_an_error():
    class Nothing(Examples):
        def __getitem__(self, index):
            raise ValueError("damaged")

    with pytest.raises(UserError, match="expected an intact example, got none"):
        Quarantined(Nothing({}), 1.0)[0]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "too many open files"),
        OSError(errno.ENOMEM, "no memory"),
        OSError(errno.EHOSTUNREACH, "no route"),
        BrokenPipeError(errno.EPIPE, "broken pipe"),
        TimeoutError("timed out"),
        ConnectionError("lost"),
    ],
    ids=repr,
)
def test_errors_of_the_machine_are_no_damage(monkeypatch, error):
    monkeypatch.setattr(quarantine.time, "sleep", lambda seconds: None)
    examples = Quarantined(Examples(error), 1.0)
    with pytest.raises(type(error)):
        examples[3]
    assert not examples.damaged


@pytest.mark.parametrize(
    "error", [OSError("image file is truncated"), FileNotFoundError(errno.ENOENT, "gone")], ids=repr
)
def test_errors_of_a_file_are_damage(error):
    examples = Quarantined(Examples(error), 1.0)
    assert examples[3]["image"][0, 0, 0] == 4
    assert examples.damaged == {3}


def test_an_error_of_the_network_is_tried_again_and_never_taken_for_damage(monkeypatch, caplog):
    monkeypatch.setattr(quarantine.time, "sleep", lambda seconds: None)

    class Flaky(Examples):
        failures = 2

        def __getitem__(self, index):
            if index == 3 and self.failures > 0:
                self.failures -= 1
                raise OSError(errno.ETIMEDOUT, "timed out")
            return super().__getitem__(index)

    examples = Quarantined(Flaky({}), 0.1)
    assert examples[3]["image"][0, 0, 0] == 3
    assert len(caplog.messages) == 2
    assert not examples.damaged
    lost = Quarantined(Examples(OSError(errno.ESTALE, "stale")), 0.1)
    with pytest.raises(OSError, match="stale"):
        lost[3]
    assert not lost.damaged


def test_arrays_with_nan_are_passed_over_in_training(caplog):
    values = np.arange(2000, dtype=np.float32).reshape(1000, 2)
    values[17, 1] = np.nan
    data = Pipeline(Arrays(x=values), shuffle=False)
    read = np.concatenate([batch["x"] for batch in batches(data, 10)])
    assert np.isfinite(read).all()
    assert np.array_equal(read[17], values[18])
    assert "example 17: expected finite numbers in x, got 1" in caplog.text
