"""The autoencoder of Stable Diffusion 1 and 2, from scratch: images to latents of an eighth of their sides, 4 channels.

Source: Rombach et al. 2022, appendix G, and the released configuration kl-f8: learning rate 4.5e-6 for each image of a
batch, KL weight 1e-6, discriminator from step 50,001 on with weight 0.5. Here the discriminator's weight is fixed, and
its norms are group norms.
Hardware and time: not run here. Parameters: 83,653,863.
Data: a folder of images, ./images. LPIPS needs two published files, VGG-16 of torchvision and the authors' vgg.pth;
without them, give --config.task.perceptual=None.

    python -m jaxdiff.train --config configs/vae_f8.py --config.data.source.path=FOLDER
"""

from ml_collections import ConfigDict

from jaxdiff.config import spec
from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.transforms import HorizontalFlip, RandomCrop
from jaxdiff.experiment import Experiment
from jaxdiff.interop.lpips import LpipsFiles
from jaxdiff.models.autoencoder_kl import AutoencoderKL
from jaxdiff.models.discriminator import PatchDiscriminator
from jaxdiff.tasks.autoencoding import AutoencodingTask
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW, Constant
from jaxdiff.training.per_module import PerModule

BATCH_SIZE = 96


def get_config() -> ConfigDict:
    adam = spec(
        AdamW,
        learning_rate=4.5e-6 * BATCH_SIZE,
        schedule=spec(Constant, warmup_steps=1000),
        b1=0.5,
        b2=0.9,
        clip_norm=1.0,
    )
    return spec(
        Experiment,
        task=spec(
            AutoencodingTask,
            network=spec(AutoencoderKL, dtype="bfloat16"),
            image_shape=(256, 256, 3),
            perceptual=spec(LpipsFiles, features="vgg16-397923af.pth", linear="vgg.pth"),
            discriminator=spec(PatchDiscriminator),
            adversarial_start=50_001,
        ),
        optimizer=spec(PerModule, optimizer=adam, others={"discriminator": adam}),
        ema=spec(Ema, decay=0.9999),
        data=spec(
            Pipeline,
            source=spec(ImageFolder, path="images", size=288, label=None),
            transforms=(spec(RandomCrop, size=256), spec(HorizontalFlip)),
            threads=16,
            prefetch=64,
        ),
        steps=250_000,
        batch_size=BATCH_SIZE,
        sample_every=0,
    )
