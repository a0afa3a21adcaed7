"""Super-resolution of photographs by 4 on a laptop: 16 x 16 to 64 x 64 pixels, trained on crops of 32 x 32.

Data: crops of scikit-learn's two photographs; a band of rows of each is held out. The low-resolution image is a
condition with noise augmentation. Samples agree with it up to rounding (`DataConsistency`). The command uses two CPU
cores, each for half of a batch.

    JAX_NUM_CPU_DEVICES=2 python -m jaxdiff.train --config configs/photos_sr.py
"""

from ml_collections import ConfigDict

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.noisy import NoiseAugmented
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.config import spec
from jaxdiff.data.conditions import Degrade
from jaxdiff.data.degradations import Downsample
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.data.transforms import HorizontalFlip, RandomCrop
from jaxdiff.denoiser import Denoiser
from jaxdiff.evaluation.reports.super_resolution import SuperResolutionEvaluation
from jaxdiff.experiment import Experiment
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import VarianceExploding, VariancePreserving
from jaxdiff.process.prediction import Edm
from jaxdiff.process.schedule import Cosine as CosineSchedule
from jaxdiff.process.time_sampling import LogNormalSigma
from jaxdiff.process.weighting import Edm as EdmWeighting
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.modifiers.data_consistency import DataConsistency
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver2M
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.tasks.objectives import WeightedError
from jaxdiff.training.ema import Ema
from jaxdiff.training.muon import Muon
from jaxdiff.training.optimizer import Cosine

WIDTH = 32
FACTOR = 4
CROP = 32
SIGMA_DATA = 0.68  # standard deviation of the pixels


def get_config() -> ConfigDict:
    network = spec(
        UNet,
        levels=(spec(Level, width=WIDTH, blocks=1), spec(Level, width=2 * WIDTH, blocks=1)),
        out_channels=3,
        middle=spec(ResidualMiddle, attention=None),
        resampling="conv",
    )
    low_res = spec(
        NoiseAugmented,
        part=spec(ImageCondition, channels=3, factor=float(FACTOR), method="bicubic"),
        noise=spec(NoiseLevel, width=4 * WIDTH),
        process=spec(VariancePreserving, schedule=spec(CosineSchedule)),
        max_level=0.3,
    )
    return spec(
        Experiment,
        task=spec(
            DenoisingTask,
            denoiser=spec(
                Denoiser,
                network=network,
                conditioner=spec(
                    Conditioner, noise=spec(NoiseLevel, width=4 * WIDTH), conditions={"low_res": low_res}
                ),
                process=spec(VarianceExploding, sigma_min=0.002, sigma_max=80.0),
                parameterization=spec(Edm, sigma_data=SIGMA_DATA),
            ),
            time_sampler=spec(LogNormalSigma, mean=-1.2, std=1.2),
            objective=spec(WeightedError, weighting=spec(EdmWeighting, sigma_data=SIGMA_DATA)),
            image_shape=(CROP, CROP, 3),
        ),
        optimizer=spec(Muon, learning_rate=2e-3, schedule=spec(Cosine, warmup_steps=50)),
        ema=spec(Ema, decay=0.998),
        data=spec(
            Pipeline,
            source=spec(Tfds, name="photos/64", split="train", label_key=None),
            transforms=(spec(RandomCrop, size=CROP), spec(HorizontalFlip)),
            conditions=LOW_RES,
            cache=True,
        ),
        test_data=spec(
            Pipeline,
            source=spec(Tfds, name="photos/64", split="test", label_key=None),
            conditions=LOW_RES,
            cache=True,
        ),
        sampling=spec(
            Recipe,
            sampler=spec(DpmSolver2M),
            grid=spec(Karras, sigma_min=0.02, sigma_max=80.0),
            guidance=spec(ClassifierFree),
            steps=16,
            modifiers=(spec(DataConsistency),),
        ),
        evaluation=spec(SuperResolutionEvaluation, factor=FACTOR, samples_per_input=2),
        steps=1200,
        batch_size=32,
        log_every=50,
        checkpoint_every=500,
        sample_every=600,
    )


LOW_RES = (spec(Degrade, field="low_res", degradation=spec(Downsample, factor=FACTOR)),)
