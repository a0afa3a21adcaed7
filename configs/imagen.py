"""Imagen: text to image at 1024 pixels by a cascade of three models (Saharia et al. 2022).

variant  output                 parameters  multiply-adds
64       64 x 64 from text      2255 M      787 G
sr256    256 x 256 from 64      717 M       369 G
sr1024   1024 x 1024 from 256   645 M       348 G per training crop, 256 x 256; 5538 G per image

Hardware and time: not run here. Models of this size need weights split over devices: the mesh is all `fsdp`.
Widths, depths and attention are the paper's, as implemented in imagen-pytorch. From memory, not checked: batch size,
learning rate, steps, schedules, thresholds, guidance, numbers of sampling steps, and the paper's 2 B, 600 M and 400 M
parameters. Differences from the paper: AdamW replaces Adafactor for the base model. In the upsamplers, every decoder
block has a skip connection, there are two middle blocks, and v is predicted, since predicting noise shifts colours at
large sizes. The noise augmentation of the low resolution is that of Ho et al. 2022 with the cosine schedule.
Data: TFDS sets ``images_64``, ``images_256`` and ``images_1024_crops`` (crops of 256 x 256), prepared once as
array_record. Each example needs a field ``text``: the output of T5-XXL's encoder, float [128, 4096], zeros after the
last token. `Tfds` reads images only, so this needs a source of your own. The low-resolution image is the image,
downsampled bicubically by 4.
To sample full images with sr1024: ``--config.task.image_shape='(1024, 1024, 3)'``; its network accepts any size.

    python -m jaxdiff.train --config configs/imagen.py:64
"""

import math

from ml_collections import ConfigDict

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.embedding import EmbeddedSequence
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.noisy import NoiseAugmented
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.config import spec
from jaxdiff.data.conditions import Degrade
from jaxdiff.data.degradations import Downsample
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.denoiser import Denoiser
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.errors import expect
from jaxdiff.experiment import Experiment
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.prediction import Noise, V
from jaxdiff.process.schedule import Cosine
from jaxdiff.process.time_sampling import Uniform as UniformTimes
from jaxdiff.process.weighting import Flat
from jaxdiff.sampling.grids.continuous import Uniform
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.modifiers.thresholding import DynamicThreshold
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ancestral import Ancestral
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.tasks.objectives import WeightedError
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW, Constant

VARIANTS = {
    "64": lambda: base(),
    "sr256": lambda: upsampler("images_256", self_attention=True),
    "sr1024": lambda: upsampler("images_1024_crops", self_attention=False),
}
PROCESS = spec(VariancePreserving, schedule=spec(Cosine))


def get_config(variant: str = "64") -> ConfigDict:
    expect(variant in VARIANTS, "variant", variant, f"one of {', '.join(VARIANTS)}", "choose one of these")
    return VARIANTS[variant]()


def base(width: int = 512) -> ConfigDict:
    attention = spec(PixelAttention, cross_attention=True, head_dim=64)
    network = spec(
        UNet,
        levels=tuple(
            spec(Level, width=width * multiple, blocks=3, attention=attention if multiple > 1 else None)
            for multiple in (1, 2, 3, 4)
        ),
        out_channels=3,
        middle=spec(ResidualMiddle, attention=attention),
        dtype="bfloat16",
        remat=True,
    )
    parts = {"text": text(tokens=width, vector=4 * width)}
    return experiment(network, 4 * width, parts, "images_64", size=64, target=spec(Noise), steps=256)


def upsampler(data: str, self_attention: bool, width: int = 128) -> ConfigDict:
    """The "efficient U-Net": no block at full resolution, most blocks at the lowest. Trained on 256 x 256 pixels."""
    attention = spec(
        PixelAttention, self_attention=self_attention, cross_attention=True, head_dim=None, heads=8
    )
    network = spec(
        UNet,
        levels=(
            spec(Level, width=width, blocks=0),
            spec(Level, width=width, blocks=2),
            spec(Level, width=2 * width, blocks=4),
            spec(Level, width=4 * width, blocks=8),
            spec(Level, width=8 * width, blocks=8, attention=attention),
        ),
        out_channels=3,
        block=spec(BlockOptions, skip_scale=math.sqrt(0.5)),
        middle=spec(ResidualMiddle, attention=attention),
        resampling="conv",
        resampled_skips=False,
        dtype="bfloat16",
    )
    low = spec(
        NoiseAugmented,
        part=spec(ImageCondition, channels=3, factor=4.0, method="bicubic"),
        noise=spec(NoiseLevel, width=4 * width),
        process=PROCESS,
        level=0.1,
    )
    parts = {"text": text(tokens=4 * width, vector=4 * width), "low_res": low}
    return experiment(network, 4 * width, parts, data, size=256, target=spec(V), steps=128)


def text(tokens: int, vector: int) -> ConfigDict:
    return spec(EmbeddedSequence, size=4096, length=128, width=tokens, vector_width=vector, drop_rate=0.1)


def experiment(
    network: ConfigDict,
    vector: int,
    parts: dict[str, ConfigDict],
    data: str,
    size: int,
    target: ConfigDict,
    steps: int,
) -> ConfigDict:
    return spec(
        Experiment,
        task=spec(
            DenoisingTask,
            denoiser=spec(
                Denoiser,
                network=network,
                conditioner=spec(Conditioner, noise=spec(NoiseLevel, width=vector), conditions=parts),
                process=PROCESS,
                parameterization=target,
            ),
            time_sampler=spec(UniformTimes),
            objective=spec(WeightedError, weighting=spec(Flat, space=spec(Noise))),
            image_shape=(size, size, 3),
        ),
        optimizer=spec(AdamW, learning_rate=1e-4, schedule=spec(Constant, warmup_steps=10_000)),
        ema=spec(Ema, decay=0.9999),
        data=spec(
            Pipeline,
            source=spec(Tfds, name=data, label_key=None),
            conditions=(
                spec(Degrade, field="low_res", degradation=spec(Downsample, factor=4, method="bicubic")),
            )
            if "low_res" in parts
            else (),
            threads=16,
            prefetch=64,
        ),
        sampling=spec(
            Recipe,
            sampler=spec(Ancestral),
            grid=spec(Uniform),
            guidance=spec(ClassifierFree, scale=8.0 if size == 64 else 4.0),
            steps=steps,
            modifiers=(spec(DynamicThreshold),),
        ),
        mesh=spec(MeshShape, data=1, fsdp=-1),
        steps=2_500_000,
        batch_size=2048,
        checkpoint_every=10_000,
        sample_every=0,
    )
