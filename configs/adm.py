"""ADM: class-conditional ImageNet models and upsamplers (Dhariwal & Nichol 2021).

variant             parameters  multiply-adds
imagenet64          295.90 M    109.7 G
imagenet128         421.53 M    306.9 G
imagenet256         553.84 M    1119.8 G
imagenet256_uncond  552.81 M    1119.8 G
imagenet512         559.00 M    1982 G
upsample256         311.80 M    631.6 G    from 64 x 64 pixels
upsample512         308.84 M    2505 G     from 128 x 128 pixels

Published FIDs with classifier guidance: 2.07, 2.97, 4.59, 7.72 at 64 to 512 pixels; 3.94 and 3.85 with upsampling.
Hardware and time: not run here; 512 pixels took 1914 V100-days. bfloat16 replaces float16.
From memory, not checked: batch sizes, learning rates, numbers of steps (except that of imagenet512), the EMA's decay.
Data: TFDS sets ``imagenet_64`` to ``imagenet_512``, prepared once as array_record. Images are cropped at the centre,
halved by 2 x 2 means while at least twice too large, then resized bicubically. The upsamplers' condition is the image,
averaged over 4 x 4 pixels.

    python -m jaxdiff.train --config configs/adm.py:imagenet64
"""

from ml_collections import ConfigDict

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.config import spec
from jaxdiff.data.conditions import Degrade
from jaxdiff.data.degradations import Downsample
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.data.transforms import HorizontalFlip
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import expect
from jaxdiff.experiment import Experiment
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.labels import StepIndex
from jaxdiff.process.prediction import LearnedVariance, Noise
from jaxdiff.process.table import CosineBetas, LinearBetas, Table
from jaxdiff.process.time_sampling import UniformSteps
from jaxdiff.sampling.grids.discrete import Respaced
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.modifiers.thresholding import StaticThreshold
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ancestral import Ancestral
from jaxdiff.tasks.bounds import Hybrid
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW

LARGE = {"width": 256, "multiples": (1, 1, 2, 2, 4, 4)}
UP = {"width": 192, "multiples": (1, 1, 2, 2, 4, 4), "upsamples": True, "steps": 500_000}
VARIANTS = {
    "imagenet64": {
        "size": 64, "width": 192, "multiples": (1, 2, 3, 4), "blocks": 3, "dropout": 0.1, "betas": CosineBetas,
        "rate": 3e-4, "batch": 2048, "steps": 540_000,
    },
    "imagenet128": {"size": 128, "width": 256, "multiples": (1, 1, 2, 3, 4), "heads": 4, "steps": 4_360_000},
    "imagenet256": {"size": 256, **LARGE, "steps": 1_980_000},
    "imagenet256_uncond": {"size": 256, **LARGE, "classes": None, "steps": 1_980_000},
    "imagenet512": {
        "size": 512, "width": 256, "multiples": (0.5, 1, 1, 2, 2, 4, 4), "dtype": "float32", "steps": 1_940_000,
    },
    "upsample256": {"size": 256, **UP, "heads": 4},
    "upsample512": {"size": 512, **UP, "attention": (32, 16)},
}  # fmt: skip


def get_config(variant: str = "imagenet64") -> ConfigDict:
    expect(variant in VARIANTS, "variant", variant, f"one of {', '.join(VARIANTS)}", "choose one of these")
    return experiment(**VARIANTS[variant])


def experiment(
    size: int, width: int, multiples: tuple[float, ...], steps: int, blocks: int = 2,
    attention: tuple[int, ...] = (32, 16, 8), heads: int | None = None, dropout: float = 0.0,
    betas: type = LinearBetas, classes: int | None = 1000, upsamples: bool = False, rate: float = 1e-4,
    batch: int = 256, dtype: str = "bfloat16",
) -> ConfigDict:  # fmt: skip
    """`attention`: sizes with self-attention. Heads have 64 channels each, unless their number is given."""
    pixels = spec(PixelAttention, head_dim=64 if heads is None else None, heads=heads)
    network = spec(
        UNet,
        levels=tuple(
            spec(
                Level,
                width=int(width * multiple),
                blocks=blocks,
                dropout=dropout,
                attention=pixels if size >> i in attention else None,
            )
            for i, multiple in enumerate(multiples)
        ),
        out_channels=6,
        block=spec(BlockOptions, min_group_size=1),
        middle=spec(ResidualMiddle, attention=pixels),
        dtype=dtype,
    )
    parts = {}
    if classes is not None:
        parts["label"] = spec(ClassLabel, num_classes=classes, width=4 * width, drop_rate=0.0, null="none")
    if upsamples:
        parts["low_res"] = spec(ImageCondition, channels=3, factor=4.0, method="bilinear")
    return spec(
        Experiment,
        task=spec(
            DenoisingTask,
            denoiser=spec(
                Denoiser,
                network=network,
                conditioner=spec(
                    Conditioner,
                    noise=spec(NoiseLevel, width=4 * width, frequencies=width // 2),
                    conditions=parts,
                ),
                process=spec(VariancePreserving, schedule=spec(Table, betas=spec(betas))),
                parameterization=spec(LearnedVariance, mean=spec(Noise, label=spec(StepIndex))),
            ),
            time_sampler=spec(UniformSteps),
            objective=spec(Hybrid),
            image_shape=(size, size, 3),
        ),
        optimizer=spec(AdamW, learning_rate=rate, clip_norm=None),
        ema=spec(Ema, decay=0.9999),
        data=spec(
            Pipeline,
            source=spec(Tfds, name=f"imagenet_{size}", label_key=None if classes is None else "label"),
            transforms=(spec(HorizontalFlip),),
            conditions=(spec(Degrade, field="low_res", degradation=spec(Downsample, factor=4)),)
            if upsamples
            else (),
            threads=16,
            prefetch=64,
        ),
        sampling=spec(
            Recipe,
            sampler=spec(Ancestral, variance="learned"),
            grid=spec(Respaced),
            guidance=spec(ClassifierFree),
            steps=250,
            modifiers=(spec(StaticThreshold),),
        ),
        steps=steps,
        batch_size=batch,
        checkpoint_every=10_000,
        sample_every=0 if upsamples else 50_000,
    )
