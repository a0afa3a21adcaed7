"""Streamed moments: exact for any division of the rows into batches, devices and processes; padding is no row."""

import functools
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff.errors import UserError
from jaxdiff.evaluation.metrics.moments import fit, fit_shards, fit_stream, merge, over_processes, union
from tests.commands import ROOT, environment

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def same(found, expected):
    np.testing.assert_allclose(found.mean, expected.mean, **EXACT)
    np.testing.assert_allclose(found.covariance, expected.covariance, **EXACT)
    assert found.n == expected.n


def test_statistics_match_numpy():
    features = np.random.default_rng(4).normal(size=(50, 7))
    found = fit(features)
    np.testing.assert_allclose(found.mean, features.mean(axis=0), **EXACT)
    np.testing.assert_allclose(found.covariance, np.cov(features.T), **EXACT)
    assert found.n == 50


def test_streaming_over_uneven_batches_is_direct():
    features = np.random.default_rng(5).normal(size=(500, 9))
    same(fit_stream(np.split(features, [1, 2, 7, 130, 499])), fit(features))


def test_a_large_mean_costs_no_digits():
    """Where the mean of squares minus the square of the mean would lose eight of them."""
    features = np.random.default_rng(5).normal(size=(500, 9))
    shifted = fit_stream(np.split(features + 2.0**13, 25))
    np.testing.assert_allclose(shifted.covariance, np.cov(features.T), rtol=0, atol=1e-11)


def test_features_that_are_not_finite_are_refused():
    for value in (np.nan, np.inf):
        with pytest.raises(UserError, match="features='': expected finite numbers"):
            fit(np.array([[1.0, 2.0], [value, 0.0]]))


def test_merge_does_not_depend_on_the_order():
    first, second = np.split(np.random.default_rng(6).normal(size=(90, 4)), [30])
    same(merge(fit(first), fit(second)), merge(fit(second), fit(first)))


@pytest.mark.parametrize("n", [40, 33, 5, 1])
def test_eight_devices_have_the_rows_of_one_and_padding_is_no_row(n):
    devices = jax.devices()
    assert len(devices) == 8
    rows = np.full((40, 6), 1e6, np.float32)  # padding that would show
    rows[:n] = np.random.default_rng(n).normal(size=(n, 6))
    split = jax.device_put(rows, NamedSharding(Mesh(np.array(devices), "rows"), PartitionSpec("rows")))
    same(over_processes(fit_shards(split, n)), fit(rows[:n]))
    copied = jax.device_put(rows, NamedSharding(Mesh(np.array(devices), "rows"), PartitionSpec()))
    same(fit_shards(copied, n), fit(rows[:n]))


def test_states_of_processes_with_unequal_parts_are_the_whole():
    rows = np.random.default_rng(1).normal(size=(101, 5))
    of_each = [fit_stream(np.array_split(part, 4)) for part in (rows[0::2], rows[1::2])]
    same(functools.reduce(union, [*of_each, None]), fit(rows))


PROGRAM = """
import jax, numpy as np
from jaxdiff.distributed import runtime
from jaxdiff.errors import UserError
from jaxdiff.evaluation.metrics.moments import fit, over_processes

runtime.start(compile_cache="")
rows = np.random.default_rng(0).normal(size=(7, 3)) + np.arange(3) / 3
whole, mine = fit(rows), rows[jax.process_index()::2]
found = over_processes(fit(mine))
error = max(np.abs(found.mean - whole.mean).max(), np.abs(found.covariance - whole.covariance).max())
print("end:", found.n, error < 1e-14, found.covariance.tobytes().hex()[:40])
alone = over_processes(fit(rows) if jax.process_index() else None)
print("end:", alone.n, np.abs(alone.covariance - whole.covariance).max() < 1e-15)
print("end:", over_processes(None))
"""


@pytest.mark.slow
def test_two_processes_have_the_moments_of_all_rows_in_float64():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment(1, JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i)),
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        ends = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    first, second = ([line for line in out.splitlines() if line.startswith("end:")] for out, _ in ends)
    assert len(first) == 3, ends
    assert first == second
    assert first[0].startswith("end: 7 True ")
    assert first[1:] == ["end: 7 True", "end: None"]


@pytest.mark.slow
def test_50000_vectors_of_2048_stream_in_bounded_memory():
    """The vectors are 0.82 GB in float64. The state and one batch are 0.15 GB, on top of what Python and NumPy need."""
    program = """
import resource
import numpy as np
from jaxdiff.errors import UserError
from jaxdiff.evaluation.metrics.moments import fit_stream
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
generator = np.random.default_rng(0)
batches = (generator.standard_normal((500, 2048), np.float32) for _ in range(100))
found = fit_stream(batches)
assert found.n == 50000
assert np.abs(np.diag(found.covariance) - 1).max() < 0.05
print(peak() - before, peak())
"""
    printed = subprocess.check_output(
        [sys.executable, "-c", program], text=True, env=environment(1), cwd=ROOT
    )
    grown, peak = (int(word) / 1e6 for word in printed.split())
    print(f"{grown:.2f} GB more than before, {peak:.2f} GB in all")
    assert grown < 0.4
