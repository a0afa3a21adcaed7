"""EDM: DDPM++ and NCSN++ on CIFAR-10, FFHQ and AFHQv2, and ADM's network on ImageNet-64 (Karras et al. 2022).

variant            network  parameters  multiply-adds  published FID  published cost
cifar10            DDPM++   55.74 M     21.2 G         1.79           2 days on 8 V100
cifar10_uncond     DDPM++   55.73 M     21.2 G         1.97           the same
cifar10_ncsnpp     NCSN++   56.40 M     21.2 G
..._uncond         NCSN++   56.39 M     21.2 G
ffhq64, afhq64     DDPM++   61.81 M     41.9 G                        4 days on 8 V100
imagenet64         ADM      295.90 M    109.7 G        1.36           13 days on 32 A100

Hardware and time: not run here. On ImageNet, bfloat16 replaces the paper's float16.
Data: TFDS sets of images of the model's size, prepared once as array_record: ``cifar10``; ``ffhq_64`` and ``afhqv2_64``
without labels; ``imagenet_64`` with labels, cropped and resized as for ADM.

    python -m jaxdiff.train --config configs/edm.py:cifar10
"""

import math

from ml_collections import ConfigDict

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.config import spec
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import expect
from jaxdiff.experiment import Experiment
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import VarianceExploding
from jaxdiff.process.prediction import Edm
from jaxdiff.process.time_sampling import LogNormalSigma
from jaxdiff.process.weighting import Edm as EdmWeighting
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.heun import Heun
from jaxdiff.tasks.augmentation import GeometricAugmentation
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.tasks.objectives import WeightedError
from jaxdiff.training.ema import HalfLifeEma
from jaxdiff.training.optimizer import AdamW, Constant

CIFAR = {
    "size": 32,
    "multiples": (2, 2, 2),
    "batch": 512,
    "rate": 1e-3,
    "dropout": 0.13,
    "p": 0.12,
    "steps": 18,
}
FACES = {"size": 64, "multiples": (1, 2, 2, 2), "batch": 256, "rate": 2e-4, "p": 0.15, "steps": 40}
VARIANTS = {
    "cifar10": lambda: small("cifar10", classes=10, **CIFAR),
    "cifar10_uncond": lambda: small("cifar10", **CIFAR),
    "cifar10_ncsnpp": lambda: small("cifar10", classes=10, ncsnpp=True, **CIFAR),
    "cifar10_ncsnpp_uncond": lambda: small("cifar10", ncsnpp=True, **CIFAR),
    "ffhq64": lambda: small("ffhq_64", dropout=0.05, **FACES),
    "afhq64": lambda: small("afhqv2_64", dropout=0.25, **FACES),
    "imagenet64": lambda: imagenet64(),
}


def get_config(variant: str = "cifar10") -> ConfigDict:
    expect(variant in VARIANTS, "variant", variant, f"one of {', '.join(VARIANTS)}", "choose one of these")
    return VARIANTS[variant]()


def small(
    data: str, size: int, multiples: tuple[int, ...], batch: int, rate: float, dropout: float, p: float,
    steps: int, classes: int | None = None, ncsnpp: bool = False, width: int = 128,
) -> ConfigDict:  # fmt: skip
    """DDPM++ or NCSN++, with non-leaking augmentation: its parameters are a condition."""
    # NCSN++ has as many random frequencies as channels, hence twice as many Fourier features.
    features = 2 * width if ncsnpp else width
    attention = spec(PixelAttention, head_dim=None, heads=1)
    network = spec(
        UNet,
        levels=tuple(
            spec(
                Level,
                width=width * multiple,
                blocks=4,
                attention=attention if size >> i == 16 else None,
                dropout=dropout,
            )
            for i, multiple in enumerate(multiples)
        ),
        out_channels=3,
        stem_width=width,
        block=spec(
            BlockOptions,
            eps=1e-6,
            modulation="shift",
            skip_scale=math.sqrt(0.5),
            resample_taps=(1.0, 3.0, 3.0, 1.0) if ncsnpp else (1.0, 1.0),
            project_resampled=True,
        ),
        middle=spec(ResidualMiddle, attention=attention),
        decoder_attention="last",
        input_path="residual" if ncsnpp else "none",
    )
    frequencies = {"frequencies": features // 2, "sine_first": True}
    frequencies |= {"random_scale": 16.0} if ncsnpp else {"endpoint": True}
    parts = {"augment": spec(Continuous, size=9, width=features, default=0.0, before_mapping=True)}
    if classes is not None:
        parts["label"] = spec(
            ClassLabel,
            num_classes=classes,
            width=features,
            drop_rate=0.0,
            null="zero",
            bias=True,
            before_mapping=True,
            scale=math.sqrt(classes),
        )
    return experiment(
        network,
        spec(Conditioner, noise=spec(NoiseLevel, width=4 * width, **frequencies), conditions=parts),
        spec(Tfds, name=data, label_key=None if classes is None else "label"),
        size, batch, rate, spec(Heun), steps, images=200e6, half_life=0.5e6,
        augmentation=spec(GeometricAugmentation, p=p),
    )  # fmt: skip


def imagenet64(width: int = 192) -> ConfigDict:
    """ADM's network, with a stochastic sampler: S_churn 40 between the levels 0.05 and 50, S_noise 1.003."""
    attention = spec(PixelAttention, head_dim=64)
    network = spec(
        UNet,
        levels=tuple(
            spec(
                Level,
                width=width * multiple,
                blocks=3,
                attention=attention if multiple > 1 else None,
                dropout=0.1,
            )
            for multiple in (1, 2, 3, 4)
        ),
        out_channels=3,
        middle=spec(ResidualMiddle, attention=attention),
        dtype="bfloat16",
    )
    label = spec(ClassLabel, num_classes=1000, width=4 * width, drop_rate=0.0, null="zero")
    sampler = spec(Heun, churn=40 / 256, churn_min=0.05, churn_max=50.0, noise_scale=1.003)
    return experiment(
        network,
        spec(Conditioner, noise=spec(NoiseLevel, width=4 * width, frequencies=width // 2), conditions={"label": label}),
        spec(Tfds, name="imagenet_64"),
        64, 4096, 1e-4, sampler, 256, images=2500e6, half_life=50e6,
    )  # fmt: skip


def experiment(
    network: ConfigDict, conditioner: ConfigDict, source: ConfigDict, size: int, batch: int, rate: float,
    sampler: ConfigDict, steps: int, images: float, half_life: float, augmentation: ConfigDict | None = None,
) -> ConfigDict:  # fmt: skip
    """The part that all variants share. `images` and `half_life` count images."""
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
            ),
            time_sampler=spec(LogNormalSigma, mean=-1.2, std=1.2),
            objective=spec(WeightedError, weighting=spec(EdmWeighting, sigma_data=0.5)),
            image_shape=(size, size, 3),
            augmentation=augmentation,
        ),
        optimizer=spec(
            AdamW,
            learning_rate=rate,
            schedule=spec(Constant, warmup_steps=round(10e6 / batch)),
            clip_norm=None,
        ),
        ema=spec(HalfLifeEma, half_life=half_life / batch),
        data=spec(Pipeline, source=source, cache=size == 32),
        sampling=spec(Recipe, sampler=sampler, grid=spec(Karras), guidance=spec(ClassifierFree), steps=steps),
        steps=round(images / batch),
        batch_size=batch,
        checkpoint_every=5000,
        sample_every=25_000,
    )
