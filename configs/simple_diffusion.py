"""simple diffusion: ImageNet at 256 and 512 pixels without a cascade, by a U-ViT (Hoogeboom et al. 2023).

variant      parameters  multiply-adds
imagenet256  2215 M      676 G
imagenet512  2216 M      774 G

The noise schedule is the cosine schedule of 64-pixel images, shifted to the image size. Most of the network is a
transformer at 16 x 16. There are no blocks above 128 x 128, and dropout only at 32 x 32 and below. The network predicts
v, and the loss is the error of the noise.
Hardware and time: not run here. A model of this size needs weights split over devices: the mesh is all `fsdp`.
From memory, not checked: all widths and depths (2 B parameters in the paper), optimizer, batch size, steps, sampler.
Differences from the paper: no wavelets at the input, no multi-scale loss, and the plain shift at 512 pixels instead of
a mean of two.
Data: TFDS sets ``imagenet_256`` and ``imagenet_512`` with labels, prepared once as array_record.

    python -m jaxdiff.train --config configs/simple_diffusion.py:imagenet256
"""

import math

from ml_collections import ConfigDict

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.config import spec
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.data.transforms import HorizontalFlip
from jaxdiff.denoiser import Denoiser
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.errors import expect
from jaxdiff.experiment import Experiment
from jaxdiff.models.transformer import TransformerMiddle
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.prediction import Noise, V
from jaxdiff.process.schedule import Cosine, Shifted
from jaxdiff.process.time_sampling import Uniform as UniformTimes
from jaxdiff.process.weighting import Flat
from jaxdiff.sampling.grids.continuous import Uniform
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.modifiers.thresholding import StaticThreshold
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ancestral import Ancestral
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.tasks.objectives import WeightedError
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW, Constant

VARIANTS = {"imagenet256": 256, "imagenet512": 512}
VECTOR = 1024


def get_config(variant: str = "imagenet256") -> ConfigDict:
    expect(variant in VARIANTS, "variant", variant, f"one of {', '.join(VARIANTS)}", "choose one of these")
    size = VARIANTS[variant]
    # Blocks begin at 128 x 128; the transformer works at 16 x 16.
    levels = tuple(spec(Level, width=128, blocks=0) for _ in range(size // 256))
    levels += tuple(spec(Level, width=width, blocks=3) for width in (128, 256))
    levels += (spec(Level, width=512, blocks=3, dropout=0.2), spec(Level, width=1024, blocks=0))
    network = spec(
        UNet,
        levels=levels,
        out_channels=3,
        middle=spec(TransformerMiddle, width=2048, blocks=36, head_dim=128, dropout=0.2),
        resampled_skips=False,
        dtype="bfloat16",
        remat=True,
    )
    conditioner = spec(
        Conditioner,
        noise=spec(NoiseLevel, width=VECTOR),
        conditions={"label": spec(ClassLabel, num_classes=1000, width=VECTOR, drop_rate=0.1)},
    )
    schedule = spec(Shifted, schedule=spec(Cosine), shift=2 * math.log(64 / size))
    return spec(
        Experiment,
        task=spec(
            DenoisingTask,
            denoiser=spec(
                Denoiser,
                network=network,
                conditioner=conditioner,
                process=spec(VariancePreserving, schedule=schedule),
                parameterization=spec(V),
            ),
            time_sampler=spec(UniformTimes),
            objective=spec(WeightedError, weighting=spec(Flat, space=spec(Noise))),
            image_shape=(size, size, 3),
        ),
        optimizer=spec(AdamW, learning_rate=1e-4, schedule=spec(Constant, warmup_steps=10_000), b2=0.99),
        ema=spec(Ema, decay=0.9999),
        data=spec(
            Pipeline,
            source=spec(Tfds, name=f"imagenet_{size}"),
            transforms=(spec(HorizontalFlip),),
            threads=16,
            prefetch=64,
        ),
        sampling=spec(
            Recipe,
            sampler=spec(Ancestral),
            grid=spec(Uniform),
            guidance=spec(ClassifierFree),
            steps=512,
            modifiers=(spec(StaticThreshold),),
        ),
        mesh=spec(MeshShape, data=1, fsdp=-1),
        steps=500_000,
        batch_size=2048,
        checkpoint_every=10_000,
        sample_every=50_000,
    )
