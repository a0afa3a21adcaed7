"""Latent diffusion on ImageNet: the class-conditional LDM-4 at 256 x 256 pixels (Rombach et al. 2022).

variant      parameters   trains
autoencoder  55,312,063   images to 64 x 64 latents of 3 channels: kl-f4, and 2,766,529 of its discriminator
ldm4         401,433,091  a U-Net in these latents, which attends to a token of the class; 400,920,579 without tokens

The paper's model, 400 M, has another autoencoder of the same factor and channels: with vector quantisation (vq-f4),
trained on OpenImages. The autoencoder here is the paper's with a KL divergence (kl-f4), trained on ImageNet. Each
channel of the latents is normalised by its mean and standard deviation, which the autoencoder's evaluation measures.
Published FID with guidance 1.5: 3.60, by DDIM with 250 steps, after 178,000 steps of 1,200 images.
Hardware and time: not run here.
From memory, not checked: learning rate, EMA, drop rate of classes; steps and batch size of the autoencoder.
Data: a TFDS set ``imagenet_256`` with the splits train and validation, prepared once as array_record, cropped and
resized as for ADM. LPIPS needs two published files, see configs/vae_f8.py; without them, give
--config.task.perceptual=None to the autoencoder.

    python -m jaxdiff.train --config configs/ldm_imagenet256.py:autoencoder --workdir runs/imagenet_autoencoder
    python -m jaxdiff.train --config configs/ldm_imagenet256.py:ldm4
"""

import pathlib

from ml_collections import ConfigDict

from jaxdiff.codecs.latent import Latent
from jaxdiff.conditioning.class_token import ClassToken
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.config import describe, load, spec
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.data.transforms import HorizontalFlip
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import expect
from jaxdiff.evaluation.metrics.reconstruction import LatentStatistics, ReconstructionPsnr
from jaxdiff.evaluation.predictions import EvaluationOfPredictions
from jaxdiff.experiment import Experiment
from jaxdiff.interop import schedulers
from jaxdiff.models.autoencoder_kl import AutoencoderKL
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.spatial_transformer import SpatialTransformer
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.time_sampling import UniformSteps
from jaxdiff.runs.latent_statistics import MeasuredLatents
from jaxdiff.runs.weights import RunWeights
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW, Constant

VARIANTS = ("ldm4", "autoencoder")
AUTOENCODER = "runs/imagenet_autoencoder"
WIDTH, MULTIPLES = 192, (1, 2, 3, 5)
TOKEN = 512
SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear",
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
"""The released model's, in diffusers' terms."""


def get_config(variant: str = "ldm4") -> ConfigDict:
    expect(variant in VARIANTS, "variant", variant, f"one of {', '.join(VARIANTS)}", "choose one of these")
    return autoencoder() if variant == "autoencoder" else latent_diffusion()


def autoencoder() -> ConfigDict:
    """configs/vae_f8.py with a factor of 4, on ImageNet."""
    config = load(str(pathlib.Path(__file__).with_name("vae_f8.py")))
    config.task.network = network()
    config.data, config.test_data = pipeline(), pipeline("validation")
    metrics = (spec(ReconstructionPsnr), spec(LatentStatistics))
    config.evaluation = spec(EvaluationOfPredictions, metrics=metrics)
    return config


def network() -> ConfigDict:
    return spec(AutoencoderKL, widths=(128, 256, 512), latent_channels=3, dtype="bfloat16")


def latent_diffusion() -> ConfigDict:
    part = SpatialTransformer(heads=1, head_dim=None)  # a single head at every width
    unet = UNet(
        tuple(Level(WIDTH * multiple, 2, part if i else None) for i, multiple in enumerate(MULTIPLES)),
        out_channels=3,
        block=BlockOptions(min_group_size=1, modulation="shift"),
        middle=ResidualMiddle(part),
        resampling="conv",
        dtype="bfloat16",
    )
    noise = NoiseLevel(4 * WIDTH, frequencies=WIDTH // 2)
    conditioner = Conditioner(noise, {"label": ClassToken(1000, TOKEN)})
    process, target = schedulers.process(SCHEDULER), schedulers.parameterization(SCHEDULER)
    return spec(
        Experiment,
        task=spec(
            DenoisingTask,
            denoiser=describe(Denoiser(unet, conditioner, process, target)),
            time_sampler=spec(UniformSteps),
            image_shape=(256, 256, 3),
            codec=spec(
                Latent,
                network=network(),
                weights=spec(RunWeights, workdir=AUTOENCODER, module="network"),
                statistics=spec(MeasuredLatents, workdir=AUTOENCODER),
                scaling_factor=1.0,
            ),
        ),
        optimizer=spec(AdamW, learning_rate=1e-4, schedule=spec(Constant, warmup_steps=1000)),
        ema=spec(Ema, decay=0.9999),
        data=pipeline(label="label"),
        sampling=describe(schedulers.recipe(SCHEDULER, steps=250, guidance=ClassifierFree(1.5))),
        steps=178_000,
        batch_size=1200,
        checkpoint_every=10_000,
        sample_every=0,
    )


def pipeline(split: str = "train", label: str | None = None) -> ConfigDict:
    """Images of ImageNet, in training mirrored at random."""
    source = spec(Tfds, name="imagenet_256", split=split, label_key=label)
    transforms = (spec(HorizontalFlip),) if split == "train" else ()
    return spec(Pipeline, source=source, transforms=transforms, threads=16, prefetch=64)
