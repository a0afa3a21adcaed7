"""EDM2: magnitude-preserving models on ImageNet-64, in pixels (Karras et al. 2024, table 6).

variant  parameters  learning rate  dropout  images
xxs      31.3 M      0.017          0        1024 Mi   not in the paper at 64 pixels; as its latent model
xs       124.7 M     0.012          0        1024 Mi
s        280.2 M     0.010          0        1024 Mi
m        497.8 M     0.009          0.1      2048 Mi
l        777.5 M     0.008          0.1      1024 Mi
xl       1119.3 M    0.007          0.1      640 Mi
xxl      1523.2 M    0.0065         0.1      448 Mi    not in the paper at 64 pixels; half the latent model's images

The published models of 512-pixel images use the same network on 64 x 64 latents of 4 channels. Their learning rate
decays after 70,000 steps instead of 35,000, and log(sigma) has mean -0.4 and standard deviation 1.
Hardware and time: not run here; the authors recommend 32 A100. bfloat16 replaces float16.
Published FIDs without guidance: 1.58 (s), 1.43 (m) and 1.33 (l, xl).
Data: a TFDS set ``imagenet_64`` with labels, prepared once as array_record, cropped and resized as for ADM.
Averages of any length after training: ``python -m jaxdiff.posthoc_ema``.

    python -m jaxdiff.train --config configs/edm2.py:s
"""

from ml_collections import ConfigDict

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.magnitude import MagnitudeClassLabel, MagnitudeNoiseLevel
from jaxdiff.config import spec
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import expect
from jaxdiff.experiment import Experiment
from jaxdiff.models.magnitude import MagnitudeUncertainty
from jaxdiff.models.magnitude_unet import MagnitudeLevel, MagnitudeUNet
from jaxdiff.process.gaussian import VarianceExploding
from jaxdiff.process.prediction import Edm
from jaxdiff.process.time_sampling import LogNormalSigma
from jaxdiff.process.weighting import Edm as EdmWeighting
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.heun import Heun
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.tasks.objectives import UncertaintyWeighted, WeightedError
from jaxdiff.training.optimizer import AdamW, InverseSqrt
from jaxdiff.training.power_ema import PowerEma

BATCH, MI = 2048, 2**20
VARIANTS = {
    "xxs": {"width": 64, "rate": 0.0170, "dropout": 0.0, "images": 1024 * MI},
    "xs": {"width": 128, "rate": 0.0120, "dropout": 0.0, "images": 1024 * MI},
    "s": {"width": 192, "rate": 0.0100, "dropout": 0.0, "images": 1024 * MI},
    "m": {"width": 256, "rate": 0.0090, "dropout": 0.1, "images": 2048 * MI},
    "l": {"width": 320, "rate": 0.0080, "dropout": 0.1, "images": 1024 * MI},
    "xl": {"width": 384, "rate": 0.0070, "dropout": 0.1, "images": 640 * MI},
    "xxl": {"width": 448, "rate": 0.0065, "dropout": 0.1, "images": 448 * MI},
}


def get_config(variant: str = "s") -> ConfigDict:
    expect(variant in VARIANTS, "variant", variant, f"one of {', '.join(VARIANTS)}", "choose one of these")
    return experiment(**VARIANTS[variant])


def experiment(width: int, rate: float, dropout: float, images: int) -> ConfigDict:
    network = spec(
        MagnitudeUNet,
        levels=tuple(
            spec(
                MagnitudeLevel, width=width * multiple, blocks=3, self_attention=multiple > 2, dropout=dropout
            )
            for multiple in (1, 2, 3, 4)
        ),
        out_channels=3,
        dtype="bfloat16",
    )
    conditioner = spec(
        Conditioner,
        noise=spec(MagnitudeNoiseLevel, width=4 * width, frequencies=width, scale=2**-0.5),
        conditions={"label": spec(MagnitudeClassLabel, num_classes=1000, width=4 * width)},
    )
    return spec(
        Experiment,
        task=spec(
            DenoisingTask,
            denoiser=spec(
                Denoiser,
                network=network,
                conditioner=conditioner,
                process=spec(VarianceExploding),
                parameterization=spec(Edm, sigma_data=0.5),
                uncertainty=spec(MagnitudeUncertainty),
            ),
            time_sampler=spec(LogNormalSigma, mean=-0.8, std=1.6),
            objective=spec(
                UncertaintyWeighted, error=spec(WeightedError, weighting=spec(EdmWeighting, sigma_data=0.5))
            ),
            image_shape=(64, 64, 3),
        ),
        optimizer=spec(
            AdamW,
            learning_rate=rate,
            schedule=spec(InverseSqrt, decay_steps=35_000, warmup_steps=round(10e6 / BATCH)),
            b2=0.99,
            clip_norm=None,
            unit_weights="weight",
        ),
        ema=spec(PowerEma, stds=(0.05, 0.10), snapshot_every=8 * MI // BATCH),
        data=spec(Pipeline, source=spec(Tfds, name="imagenet_64"), threads=16, prefetch=64),
        sampling=spec(Recipe, sampler=spec(Heun), grid=spec(Karras), guidance=spec(ClassifierFree), steps=32),
        steps=images // BATCH,
        batch_size=BATCH,
        checkpoint_every=10_000,
        sample_every=50_000,
    )
