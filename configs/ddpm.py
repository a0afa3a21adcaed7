"""DDPM: unconditional CIFAR-10 (Ho et al. 2020); 35.75 M parameters, 6.2 G multiply-adds per image.

Hardware and time: not run here; published: 10.6 hours on a TPU v3-8, FID 3.17.
Data: the TFDS set ``cifar10``, prepared once: ``tfds build cifar10 --file_format=array_record``.
From memory, not checked: the variance "large", and padding at the end of strided convolutions.

    python -m jaxdiff.train --config configs/ddpm.py
"""

from ml_collections import ConfigDict

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.config import spec
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
from jaxdiff.process.prediction import Noise
from jaxdiff.process.table import LinearBetas, Table
from jaxdiff.process.time_sampling import UniformSteps
from jaxdiff.sampling.grids.continuous import Uniform
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.modifiers.thresholding import StaticThreshold
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ancestral import Ancestral
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW, Constant

VARIANTS = ("cifar10",)
WIDTH, STEPS = 128, 1000


def get_config(variant: str = "cifar10") -> ConfigDict:
    expect(variant in VARIANTS, "variant", variant, f"one of {', '.join(VARIANTS)}", "choose one of these")
    attention = spec(PixelAttention, head_dim=None, heads=1)
    network = spec(
        UNet,
        levels=tuple(
            spec(
                Level,
                width=WIDTH * multiple,
                blocks=2,
                attention=attention if size == 16 else None,
                dropout=0.1,
            )
            for size, multiple in ((32, 1), (16, 2), (8, 2), (4, 2))
        ),
        out_channels=3,
        block=spec(BlockOptions, min_group_size=1, eps=1e-6, modulation="shift"),
        middle=spec(ResidualMiddle, attention=attention),
        resampling="conv",
        pad_end=True,
    )
    noise = spec(NoiseLevel, width=4 * WIDTH, frequencies=WIDTH // 2, endpoint=True, sine_first=True)
    return spec(
        Experiment,
        task=spec(
            DenoisingTask,
            denoiser=spec(
                Denoiser,
                network=network,
                conditioner=spec(Conditioner, noise=noise),
                process=spec(VariancePreserving, schedule=spec(Table, betas=spec(LinearBetas, steps=STEPS))),
                parameterization=spec(Noise, label=spec(StepIndex, steps=STEPS)),
            ),
            time_sampler=spec(UniformSteps, steps=STEPS),
            image_shape=(32, 32, 3),
        ),
        optimizer=spec(AdamW, learning_rate=2e-4, schedule=spec(Constant, warmup_steps=5000)),
        ema=spec(Ema, decay=0.9999),
        data=spec(
            Pipeline, source=spec(Tfds, name="cifar10"), transforms=(spec(HorizontalFlip),), cache=True
        ),
        sampling=spec(
            Recipe,
            sampler=spec(Ancestral, variance="large"),
            grid=spec(Uniform),
            guidance=spec(ClassifierFree),
            steps=STEPS,
            modifiers=(spec(StaticThreshold),),
        ),
        steps=800_000,
        batch_size=128,
        checkpoint_every=10_000,
        sample_every=50_000,
    )
