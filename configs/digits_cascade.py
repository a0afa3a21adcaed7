"""A cascade of two class-conditional models of handwritten digits: 4 x 4 pixels, then 8 x 8.

variant   output  conditions
base      4 x 4   the class
upsample  8 x 8   the class and the 4 x 4 image, with noise augmentation

    python -m jaxdiff.train --config configs/digits_cascade.py:base
    python -m jaxdiff.train --config configs/digits_cascade.py:upsample
    python -m jaxdiff.sample --cascade runs/digits_cascade_base,runs/digits_cascade_upsample --label all --n 100
"""

from ml_collections import ConfigDict

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.noisy import NoiseAugmented
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.config import spec
from jaxdiff.data.conditions import Degrade
from jaxdiff.data.degradations import Downsample
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.data.transforms import Resize
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import expect
from jaxdiff.evaluation.reports.class_conditional import ImageEvaluation
from jaxdiff.experiment import Experiment
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import VarianceExploding, VariancePreserving
from jaxdiff.process.prediction import Edm
from jaxdiff.process.schedule import Cosine as CosineSchedule
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

VARIANTS = ("base", "upsample")
WIDTH = 32
SIGMA_DATA = 0.75  # standard deviation of the pixels, background included


def get_config(variant: str = "base") -> ConfigDict:
    expect(variant in VARIANTS, "variant", variant, f"one of {', '.join(VARIANTS)}", "choose one of these")
    label = spec(ClassLabel, num_classes=10, width=4 * WIDTH, drop_rate=0.1)
    if variant == "base":
        derived = (spec(Resize, size=4, method="area"),)
        return experiment({"label": label}, derived, size=4, mean=-0.4, guidance=1.5)
    low_res = spec(
        NoiseAugmented,
        part=spec(ImageCondition, channels=1, factor=2.0, method="bicubic"),
        noise=spec(NoiseLevel, width=4 * WIDTH),
        process=spec(VariancePreserving, schedule=spec(CosineSchedule)),
        max_level=0.5,
        level=0.05,
    )
    derived = (spec(Degrade, field="low_res", degradation=spec(Downsample, factor=2)),)
    return experiment({"label": label, "low_res": low_res}, derived, size=8, mean=-1.0, guidance=1.0)


def experiment(parts: dict, conditions: tuple, size: int, mean: float, guidance: float) -> ConfigDict:
    network = spec(
        UNet,
        levels=(
            spec(Level, width=WIDTH, blocks=1),
            spec(Level, width=2 * WIDTH, blocks=1, attention=spec(PixelAttention, head_dim=32)),
        ),
        out_channels=1,
    )
    return spec(
        Experiment,
        task=spec(
            DenoisingTask,
            denoiser=spec(
                Denoiser,
                network=network,
                conditioner=spec(Conditioner, noise=spec(NoiseLevel, width=4 * WIDTH), conditions=parts),
                process=spec(VarianceExploding, sigma_min=0.002, sigma_max=80.0),
                parameterization=spec(Edm, sigma_data=SIGMA_DATA),
            ),
            time_sampler=spec(LogNormalSigma, mean=mean, std=1.2),
            objective=spec(WeightedError, weighting=spec(EdmWeighting, sigma_data=SIGMA_DATA)),
            image_shape=(size, size, 1),
        ),
        optimizer=spec(AdamW, learning_rate=2e-3, schedule=spec(Cosine, warmup_steps=100)),
        ema=spec(Ema, decay=0.998),
        data=pipeline("train", conditions),
        test_data=pipeline("test", conditions),
        sampling=spec(
            Recipe,
            sampler=spec(DpmSolver2M),
            grid=spec(Karras, sigma_min=0.02, sigma_max=80.0),
            guidance=spec(ClassifierFree, scale=guidance),
            steps=16,
        ),
        evaluation=spec(ImageEvaluation),
        steps=1000,
        batch_size=64,
        log_every=50,
        checkpoint_every=500,
        sample_every=500,
    )


def pipeline(split: str, conditions: tuple) -> ConfigDict:
    return spec(Pipeline, source=spec(Tfds, name="digits", split=split), conditions=conditions, cache=True)
