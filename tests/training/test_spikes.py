"""Spikes of the loss: reported, and left out of training where a run wants that."""

import numpy as np
import pytest

from jaxdiff.training.fault_tolerance import FaultTolerance, Spikes
from jaxdiff.training.spikes import SpikeReports, appended, is_spike, no_losses
from tests.training import toy
from tests.training.test_loop import logged, run

FEW = Spikes(window=4, deviations=6.0)
SKIPPING = {"tolerance": FaultTolerance(skip_spikes=FEW)}


def spiky(start, steps=(9,)):
    for step, batch in enumerate(toy.batches(start), start):
        yield {**batch, "y": 1000 * batch["y"]} if step in steps else batch


def test_the_bound_is_that_of_a_normal_distribution():
    losses = np.random.default_rng(0).normal(2.0, 0.1, 10_001).astype(np.float32)
    spikes = Spikes(window=10_001, deviations=5.0)
    assert not is_spike(losses, 2.0 + 4.8 * 0.1, spikes)
    assert is_spike(losses, 2.0 + 5.2 * 0.1, spikes)
    losses[:2000] = 1e6  # a fifth of the losses may be anything
    assert is_spike(losses, 4.0, spikes)


def test_nothing_is_a_spike_before_half_of_the_window_is_there():
    losses = no_losses(4)
    for _ in range(2):
        assert not is_spike(losses, 1e9, FEW)
        losses = appended(losses, 1.0)
    assert is_spike(losses, 1e9, FEW)
    assert not is_spike(losses, 1.001, FEW), "equal losses have no deviation"


def test_a_report_names_the_step_of_a_spike(caplog):
    reports = SpikeReports(FEW)
    for step, loss in enumerate([1.0, 1.1, 0.9, 1.0, 50.0, 1.05, np.nan]):
        reports.add(step, loss)
    (message,) = caplog.messages
    assert message.startswith("step 4: ")
    assert "50" in message


@pytest.mark.slow
def test_a_spike_is_trained_on_by_default_and_skipped_like_nan_if_wanted(tmp_path):
    trained = run(tmp_path / "trained", 12, spiky)
    assert sum(row["skipped"] for row in logged(tmp_path / "trained")) == 0
    skipped = run(tmp_path / "skipped", 12, spiky, parts=SKIPPING)
    nan = run(tmp_path / "nan", 12, lambda start: toy.batches(start, poison=(9,)), parts=SKIPPING)
    assert toy.sha(skipped) == toy.sha(nan)
    assert toy.sha(skipped.params) != toy.sha(trained.params)


@pytest.mark.slow
@pytest.mark.parametrize("first", [6, 9])
def test_a_resumed_run_skips_the_same_spikes(tmp_path, first):
    straight = run(tmp_path / "straight", 12, spiky, parts=SKIPPING)
    run(tmp_path / "halves", first, spiky, parts=SKIPPING)
    assert toy.sha(run(tmp_path / "halves", 12, spiky, parts=SKIPPING)) == toy.sha(straight)
