"""Palette: one image into another at 256 x 256 pixels (Saharia et al. 2022).

552.8 M parameters and 1119.8 G multiply-adds an image: ADM's network for 256 pixels without classes, which sees the
given image beside the noisy one. Colour, what is missing, or what JPEG has lost: the data say what is to be done.

Hardware and time: not run here.
From memory: batch, learning rate, warm-up, steps, the decay of the average, no dropout, and the plain squared error.
The paper samples with other betas than it trains with, and tells the network alpha^2; here betas are those of
training (1e-6 to 0.01 in 2000 steps), and the network is told the time, which says the same.
Data: a TFDS set ``images_256`` prepared once as array_record, and a field ``source`` for each example: the image to
begin with, uint8 [256, 256, 3]. A transform can add it; `Tfds` reads images only.

    python -m jaxdiff.train --config configs/palette.py
"""

from ml_collections import ConfigDict

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.config import spec
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import require
from jaxdiff.experiment import Experiment
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.prediction import Noise
from jaxdiff.process.table import LinearBetas, Table
from jaxdiff.process.time_sampling import Uniform as UniformTimes
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.grids import Uniform
from jaxdiff.sampling.guidance import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.thresholding import StaticThreshold
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW, Constant

VARIANTS = ("256",)
WIDTH, SIZE = 256, 256


def get_config(variant: str = "256") -> ConfigDict:
    require(variant in VARIANTS, "variant", variant, "no such model", f"use one of {', '.join(VARIANTS)}")
    network = spec(
        UNet,
        levels=tuple(
            spec(Level, width=WIDTH * multiple, blocks=2, self_attention=SIZE >> i <= 32)
            for i, multiple in enumerate((1, 1, 2, 2, 4, 4))
        ),
        out_channels=3,
        head_dim=64,
        min_group_size=1,
        dtype="bfloat16",
    )
    conditioner = spec(
        Conditioner,
        noise=spec(NoiseLevel, width=4 * WIDTH),
        parts={"source": spec(ImageCondition, channels=3)},
    )
    betas = spec(LinearBetas, first=1e-6, last=0.01, steps=2000)
    return spec(
        Experiment,
        task=spec(
            DenoisingTask,
            denoiser=spec(
                Denoiser,
                network=network,
                conditioner=conditioner,
                process=spec(VariancePreserving, schedule=spec(Table, betas=betas)),
                parameterization=spec(Noise),
            ),
            times=spec(UniformTimes),
            image_shape=(SIZE, SIZE, 3),
        ),
        optimizer=spec(AdamW, learning_rate=1e-4, schedule=spec(Constant, warmup_steps=10_000)),
        ema=spec(Ema, decay=0.9999),
        data=spec(Pipeline, source=spec(Tfds, name="images_256", label_key=None), threads=16, prefetch=64),
        sampling=spec(
            Recipe,
            sampler=spec(Ancestral),
            grid=spec(Uniform),
            guidance=spec(ClassifierFree),
            steps=1000,
            modifiers=(spec(StaticThreshold),),
        ),
        steps=1_000_000,
        batch_size=1024,
        checkpoint_every=10_000,
        sample_every=0,
    )
