"""SR3: super-resolution of faces by iterative refinement (Saharia et al. 2021).

variant     from     to         parameters  multiply-adds
16_to_128   16 x 16  128 x 128  560.7 M     273.7 G
64_to_512   64 x 64  512 x 512  609.8 M     1146 G

Hardware and time: not run here.
From memory, not checked: the paper's widths, depths, dropout, batch size, learning rate and steps, and its 550 M and
625 M parameters, from which these networks differ in details. The betas (1e-6 to 0.01 in 2000 steps) are those of the
repository Janspiry/Image-Super-Resolution-via-Iterative-Refinement, whose networks have half the width and 2 blocks per
level. Differences from the paper: the network receives the time instead of alpha, which is equivalent. The loss is the
squared error, not the absolute one. Sampling takes 100 steps, equal in time, where the paper searches for good betas.
Data: TFDS sets ``ffhq_128`` and ``ffhq_512``, prepared once as array_record. The condition is the image, downsampled
bicubically by 8.

    python -m jaxdiff.train --config configs/sr3.py:16_to_128
"""

import math

from ml_collections import ConfigDict

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.config import spec
from jaxdiff.data.conditions import Degrade
from jaxdiff.data.degradations import Downsample
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import expect
from jaxdiff.experiment import Experiment
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.prediction import Noise
from jaxdiff.process.table import LinearBetas, Table
from jaxdiff.process.time_sampling import Uniform as UniformTimes
from jaxdiff.sampling.grids.continuous import Uniform
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.modifiers.thresholding import StaticThreshold
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ancestral import Ancestral
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW, Constant

VARIANTS = {
    "16_to_128": {"size": 128, "width": 128, "multiples": (1, 2, 4, 8, 8), "dropout": 0.2},
    "64_to_512": {"size": 512, "width": 64, "multiples": (1, 2, 4, 8, 8, 16, 16), "dropout": 0.0},
}


def get_config(variant: str = "16_to_128") -> ConfigDict:
    expect(variant in VARIANTS, "variant", variant, f"one of {', '.join(VARIANTS)}", "choose one of these")
    return experiment(**VARIANTS[variant])


def experiment(size: int, width: int, multiples: tuple[int, ...], dropout: float) -> ConfigDict:
    attention = spec(PixelAttention, head_dim=None, heads=1)
    network = spec(
        UNet,
        levels=tuple(
            spec(
                Level,
                width=width * multiple,
                blocks=3,
                attention=attention if size >> i == 16 else None,
                dropout=dropout,
            )
            for i, multiple in enumerate(multiples)
        ),
        out_channels=3,
        block=spec(BlockOptions, modulation="shift", skip_scale=math.sqrt(0.5)),
        middle=spec(ResidualMiddle, attention=attention),
        dtype="bfloat16",
    )
    conditioner = spec(
        Conditioner,
        noise=spec(NoiseLevel, width=4 * width),
        conditions={"low_res": spec(ImageCondition, channels=3, factor=8.0, method="bicubic")},
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
            time_sampler=spec(UniformTimes),
            image_shape=(size, size, 3),
        ),
        optimizer=spec(AdamW, learning_rate=1e-4, schedule=spec(Constant, warmup_steps=10_000)),
        ema=spec(Ema, decay=0.9999),
        data=spec(
            Pipeline,
            source=spec(Tfds, name=f"ffhq_{size}", label_key=None),
            conditions=(
                spec(Degrade, field="low_res", degradation=spec(Downsample, factor=8, method="bicubic")),
            ),
            threads=16,
            prefetch=64,
        ),
        sampling=spec(
            Recipe,
            sampler=spec(Ancestral),
            grid=spec(Uniform),
            guidance=spec(ClassifierFree),
            steps=100,
            modifiers=(spec(StaticThreshold),),
        ),
        steps=1_000_000,
        batch_size=256,
        checkpoint_every=10_000,
        sample_every=0,
    )
