"""Thousands of simulated hosts: the rows of all are the global batch, whatever their number, and after any failure."""

import dataclasses
import itertools

import numpy as np
import pytest

from jaxdiff.data.pipeline import Pipeline

EXAMPLES = 20_011  # a prime: no batch size and no number of hosts divides it
BATCH = 4096


@dataclasses.dataclass(frozen=True)
class Indices:
    """Examples that are their own index, as many as wanted."""

    n: int = EXAMPLES
    image_shape = None
    num_classes = None

    def open(self):
        return self

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return {"index": np.int32(i)}


PIPELINE = Pipeline(Indices(), threads=0)


def rows(host, hosts, start=0, steps=1, seed=7, batch=BATCH):
    """The indices that a host reads from a step on, [steps, rows]."""
    iterator = PIPELINE.batches(batch, seed, start, host, hosts)
    found = np.stack([each["index"] for each in itertools.islice(iterator, steps)])
    iterator.close()
    return found


@pytest.fixture(scope="module")
def order():
    """The order of one host: 6 batches, which are more than an epoch."""
    return rows(0, 1, steps=6)


def test_the_order_is_a_new_permutation_in_each_epoch(order):
    flat = order.reshape(-1)
    assert np.array_equal(np.sort(flat[:EXAMPLES]), np.arange(EXAMPLES))
    rest = flat[EXAMPLES:]
    assert len(set(rest)) == len(rest) > 4000
    assert not np.array_equal(rest, flat[: len(rest)])


@pytest.mark.parametrize("hosts", [2, 64, 256])
def test_all_hosts_together_read_the_global_batch_without_duplicates(order, hosts):
    parts = [
        rows(host, hosts, start=3, steps=2) for host in range(hosts)
    ]  # the second crosses the end of the epoch
    together = np.concatenate(parts, axis=1)
    assert np.array_equal(together, order[3:5])
    assert len(set(together[0])) == BATCH
    assert all(part.shape == (2, BATCH // hosts) for part in parts)


@pytest.mark.parametrize("hosts", [512, 1024, 2048, 4096])
def test_each_of_thousands_of_hosts_reads_its_own_rows(order, hosts):
    """Sampled hosts at sampled steps. Disjoint rows of all hosts cover the batch."""
    draw, size = np.random.default_rng(hosts), BATCH // hosts
    chosen = {0, hosts - 1, *draw.integers(0, hosts, 30).tolist()}
    for host in chosen:
        step = int(draw.integers(0, len(order)))
        assert np.array_equal(rows(host, hosts, step)[0], order[step, host * size : (host + 1) * size])


def test_the_order_is_a_function_of_seed_and_step():
    for seed, step in ((0, 3), (2**32 - 1, 1_000_003)):
        whole = rows(0, 1, step, seed=seed)
        assert np.array_equal(rows(4095, 4096, step, seed=seed)[0], whole[0, -1:])
        assert np.array_equal(rows(0, 1, step, seed=seed), whole)
    assert not np.array_equal(rows(0, 1, seed=0), rows(0, 1, seed=1))


def test_failures_and_restarts_with_other_numbers_of_hosts_change_nothing(order):
    """Each attempt has its own number of hosts, and goes back to a step that was saved."""
    draw, trained, step = np.random.default_rng(0), {}, 0
    while step < len(order):
        hosts = int(2 ** draw.integers(0, 7))
        length = int(draw.integers(1, 4))
        parts = [rows(host, hosts, step, length) for host in range(hosts)]
        for offset, batch in enumerate(np.concatenate(parts, axis=1)):
            assert np.array_equal(trained.setdefault(step + offset, batch), batch)
        step += int(draw.integers(0, length + 1))  # what was saved before the failure
    assert all(np.array_equal(trained[i], order[i]) for i in range(len(order)))
