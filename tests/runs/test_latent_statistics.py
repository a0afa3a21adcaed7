"""From an autoencoder's run to a latent model's: trained, evaluated, and normalised by what the evaluation measured."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxdiff.codecs.latent import STATISTICS, Latent
from jaxdiff.data.arrays import Arrays
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.errors import UserError
from jaxdiff.evaluation.metrics.reconstruction import LatentStatistics, ReconstructionPsnr
from jaxdiff.evaluation.predictions import EvaluationOfPredictions
from jaxdiff.experiment import Experiment
from jaxdiff.models.autoencoder_kl import AutoencoderKL
from jaxdiff.runs.latent_statistics import MeasuredLatents
from jaxdiff.runs.weights import RunWeights, load
from jaxdiff.tasks.autoencoding import LATENT, RECONSTRUCTION, AutoencodingTask
from jaxdiff.train import train
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW

IMAGES = (load_digits().images[:128, ..., None] * 15.9).astype(np.uint8)
NETWORK = AutoencoderKL((8, 8), 1, latent_channels=3, image_channels=1, groups=2, middle_attention=False)


def experiment(steps):
    source = Arrays(image=IMAGES)
    return Experiment(
        task=AutoencodingTask(NETWORK, (8, 8, 1), distance="l2", kl_weight=1e-4),
        optimizer=AdamW(3e-3),
        ema=Ema(0.9),
        data=Pipeline(source),
        test_data=Pipeline(source),
        evaluation=EvaluationOfPredictions((ReconstructionPsnr(), LatentStatistics())),
        steps=steps,
        batch_size=32,
        sample_every=0,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "autoencoder"
    return folder, train(experiment(60), str(folder))


def latent(folder):
    weights = RunWeights(str(folder), module="network")
    statistics = MeasuredLatents(str(folder))
    return Latent(NETWORK, weights, scaling_factor=1.0, posterior="mode", statistics=statistics)


@pytest.mark.slow
def test_the_evaluation_measures_what_numpy_finds(run):
    folder, predictor = run
    values = json.loads((folder / "evaluation.json").read_text())["test"]
    found = predictor({"image": IMAGES})
    made = np.clip(np.rint((found[RECONSTRUCTION].astype(np.float64) + 1) * 127.5), 0, 255)
    error = np.mean(np.square(made - IMAGES))
    assert values["reconstruction_psnr"] == pytest.approx(10 * np.log10(255**2 / error), rel=1e-4)
    assert error < np.mean(np.square(IMAGES.mean(axis=0) - IMAGES)), "better than the mean image"
    for name, function in (("mean", np.mean), ("std", np.std)):
        expected = function(found[LATENT].astype(np.float64), axis=(0, 1, 2))
        np.testing.assert_allclose(values["latents"][name], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_codec_normalises_latents_by_what_was_measured(run):
    folder, predictor = run
    codec = latent(folder)
    frozen = load(codec.frozen, predictor.mesh)
    x_0 = codec.encode(frozen, jnp.asarray(IMAGES), jax.random.split(jax.random.key(0), len(IMAGES)))
    assert x_0.shape == (128, 4, 4, 3)
    np.testing.assert_allclose(np.mean(x_0, axis=(0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(np.std(x_0, axis=(0, 1, 2)), 1, rtol=1e-3)
    np.testing.assert_allclose(
        codec.decode(frozen, x_0), predictor({"image": IMAGES})[RECONSTRUCTION], rtol=1e-3, atol=1e-3
    )
    shapes = jax.tree.map(lambda leaf: leaf.shape, codec.frozen_shapes())
    assert jax.tree.map(lambda leaf: tuple(leaf.shape), frozen)[STATISTICS] == shapes[STATISTICS]


def test_a_run_without_statistics_is_refused(tmp_path):
    folder, report = tmp_path, tmp_path / "evaluation.json"
    for values in ({"test": {}}, {"test": {"latents": {"mean": [0.0]}}}, []):
        report.write_text(json.dumps(values))
        with pytest.raises(UserError, match=r"expected statistics of latents in evaluation.json, got none"):
            MeasuredLatents(str(folder)).read()
    report.write_text(json.dumps({"test": {"latents": {"mean": [0.0, 1.0], "std": [1.0, 0.0]}}}))
    with pytest.raises(UserError, match="expected latents that vary in every channel"):
        MeasuredLatents(str(folder)).read()
    report.unlink()
    with pytest.raises(
        UserError, match=r"expected a run with evaluation.json, got none. Fix: evaluate the run"
    ):
        MeasuredLatents(str(folder)).read()
    with pytest.raises(UserError, match=r"statistics=.*: expected either statistics or latents_mean"):
        Latent(
            NETWORK,
            RunWeights("x"),
            latents_mean=(0.0,) * 3,
            latents_std=(1.0,) * 3,
            statistics=MeasuredLatents("x"),
        )
