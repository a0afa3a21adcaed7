"""Class-conditional handwritten digits on a laptop: the first example to run.

scikit-learn's 8x8 scans (1,500 to train, 297 held out), a small ADM-style U-Net, EDM's noise and preconditioning.

    python -m jaxdiff.train --config configs/digits.py
"""

from ml_collections import ConfigDict

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.config import spec
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.denoiser import Denoiser
from jaxdiff.evaluation.classifiers.svm import SvmClassifier
from jaxdiff.evaluation.features.pixels import Pixels
from jaxdiff.evaluation.reports.class_conditional import ImageEvaluation
from jaxdiff.experiment import Experiment
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import VarianceExploding
from jaxdiff.process.prediction import Edm
from jaxdiff.process.time_sampling import LogNormalSigma
from jaxdiff.process.weighting import Edm as EdmWeighting
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver2M
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.tasks.objectives import WeightedError
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW, Cosine

WIDTH = 32
SIGMA_DATA = 0.75  # standard deviation of the pixels, background included


def get_config() -> ConfigDict:
    network = spec(
        UNet,
        levels=(
            spec(Level, width=WIDTH, blocks=1),
            spec(Level, width=2 * WIDTH, blocks=1, attention=spec(PixelAttention, head_dim=32)),
        ),
        out_channels=1,
    )
    conditioner = spec(
        Conditioner,
        noise=spec(NoiseLevel, width=4 * WIDTH),
        conditions={"label": spec(ClassLabel, num_classes=10, width=4 * WIDTH, drop_rate=0.1)},
    )
    return spec(
        Experiment,
        task=spec(
            DenoisingTask,
            denoiser=spec(
                Denoiser,
                network=network,
                conditioner=conditioner,
                process=spec(VarianceExploding, sigma_min=0.002, sigma_max=80.0),
                parameterization=spec(Edm, sigma_data=SIGMA_DATA),
            ),
            time_sampler=spec(LogNormalSigma, mean=-0.6, std=1.2),
            objective=spec(WeightedError, weighting=spec(EdmWeighting, sigma_data=SIGMA_DATA)),
            image_shape=(8, 8, 1),
        ),
        optimizer=spec(AdamW, learning_rate=2e-3, schedule=spec(Cosine, warmup_steps=100)),
        ema=spec(Ema, decay=0.998),
        data=spec(Pipeline, source=spec(Tfds, name="digits", split="train"), cache=True),
        test_data=spec(Pipeline, source=spec(Tfds, name="digits", split="test"), cache=True),
        sampling=spec(
            Recipe,
            sampler=spec(DpmSolver2M),
            grid=spec(Karras, sigma_min=0.02, sigma_max=80.0),
            guidance=spec(ClassifierFree, scale=1.5),
            steps=16,
        ),
        evaluation=spec(ImageEvaluation, features=spec(Pixels), classifier=spec(SvmClassifier), n=1000, k=5),
        steps=1000,
        batch_size=64,
        log_every=25,
        checkpoint_every=250,
        sample_every=500,
    )
