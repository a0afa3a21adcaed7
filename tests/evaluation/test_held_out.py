"""Held-out loss: a closed form by band, the same noise and times at each evaluation, and logged from the average."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxdiff.cli import app
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.config import build
from jaxdiff.data.arrays import Arrays
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError
from jaxdiff.evaluation.examples import InMemory
from jaxdiff.evaluation.held_out import NAME, HeldOutLoss
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.prediction import Edm
from jaxdiff.process.schedule import Cosine
from jaxdiff.process.time_sampling import Uniform
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.train import train
from tests.commands import DIGITS, TINY
from tests.tasks import models
from tests.training.toy import mesh

STD = 0.6
BANDS = ("0.00-0.25", "0.25-0.50", "0.50-0.75", "0.75-1.00")
IMAGES = (load_digits().images[:96, ..., None] * 15.9).astype(np.uint8)
LABELS = load_digits().target[:96]


def task():
    """Zeros with EDM's skip: the optimal denoiser of Gaussian data, here of whitened noise."""
    process = VariancePreserving(Cosine(-12.0, 12.0))
    denoiser = Denoiser(models.Zero(), Conditioner(models.Label()), process, Edm(STD))
    return DenoisingTask(denoiser, Uniform(), (8, 8, 3))


def examples(count):
    random = np.random.default_rng(0)
    levels = 127.5 * (1 + np.clip(STD * random.standard_normal((count, 8, 8, 3)), -1, 1))
    return InMemory({"image": np.rint(levels).astype(np.uint8)})


PLAIN = HeldOutLoss()


def losses(count, loss=PLAIN, on=None):
    return loss(task(), {}, examples(count), on or mesh(), {})


def test_each_band_has_the_error_of_v_of_the_best_denoiser():
    """``(SNR + 1) var`` with the posterior variance ``var = std^2 sigma^2 / (alpha^2 std^2 + sigma^2)``."""
    found, count = losses(80), 80
    pixels = examples(count).fields["image"] / 127.5 - 1
    process = task().denoiser.process
    for i, band in enumerate(BANDS):
        t = (i + (np.arange(count) + 0.5) / count) / 4
        alpha, sigma = (np.asarray(each, float) for each in process.signal(jax.numpy.asarray(t, np.float32)))
        skip = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        error = (1 - skip * alpha) ** 2 * np.mean(pixels**2, axis=(1, 2, 3)) + (skip * sigma) ** 2
        expected = np.mean((1 + alpha**2 / sigma**2) * error)
        assert np.isclose(found[f"{NAME}/{band}"], expected, rtol=0.03)
    assert np.isclose(found[NAME], np.mean([found[f"{NAME}/{band}"] for band in BANDS]), rtol=1e-6)


def test_it_is_the_same_at_each_evaluation():
    assert losses(70) == losses(70)
    assert losses(70, HeldOutLoss(n=30)) != losses(70)


def test_bands_are_chosen():
    found = losses(9, HeldOutLoss(bands=2, n=5), mesh(8))
    assert set(found) == {NAME, f"{NAME}/0.00-0.50", f"{NAME}/0.50-1.00"}
    assert all(np.isfinite(value) for value in found.values())


def config(steps):
    words = [tuple(word.removeprefix("--config.").split("=")) for word in TINY]
    options = [("steps", str(steps)), ("evaluation", "None"), ("log_every", "1"), ("checkpoint_every", "2"),
               ("held_out_loss", "jaxdiff.evaluation.held_out:HeldOutLoss(every=2, n=20)")]  # fmt: skip
    return app.load_config(DIGITS, [*words, *options])


def logged(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row for row in rows if NAME in row}


@pytest.mark.slow
def test_it_is_logged_in_training_from_the_average(tmp_path):
    options = {"source": Arrays(image=IMAGES[:64], label=LABELS[:64]),
               "test_source": Arrays(image=IMAGES[64:], label=LABELS[64:])}  # fmt: skip
    generator = train(config(4), str(tmp_path), **options)
    found = logged(tmp_path)
    assert list(found) == [2, 4]
    test = dataclasses.replace(build(config(4)).test_data, source=options["test_source"]).stored()
    again = HeldOutLoss(2, 20)(
        build(config(4)).task, generator.params, test, generator.mesh, generator.frozen
    )
    assert found[4] == {"step": 4, **again}


def test_it_needs_test_data():
    experiment = build(config(4))
    with pytest.raises(UserError, match="test_data=None: expected held-out examples for the loss"):
        dataclasses.replace(experiment, test_data=None)
