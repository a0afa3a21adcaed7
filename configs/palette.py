"""Palette: image-to-image models at 256 x 256 pixels (Saharia et al. 2022).

variant   condition
colorize  the grey image
inpaint   the image without some strokes, or without a box
uncrop    half of the image: without one side, or without its margins
jpeg      the image after JPEG compression at quality 5 to 30
multi     one of these, and the index of the task

552.82 M parameters and 1120.0 G multiply-adds per image: ADM's unconditional network for 256 pixels, with the condition
joined to the noisy image. Its fourth channel, alpha, separates known pixels, which samples reproduce exactly, from
hints. The paper's networks have no such channel; without it, the numbers are 552.81 M and 1119.8 G, since each of the
stem's 256 filters has 9 weights less. In `multi`, the task is a class, numbered from 0 in the order of this table; its
embedding has 4096 parameters.

Hardware and time: not run here.
From memory, not checked: batch size, learning rate, warm-up, steps, the EMA's decay, no dropout, the squared error, the
four tasks, JPEG qualities, and halves in uncropping. The sizes of strokes and boxes are this library's choice.
Differences from the paper, also from memory: missing pixels are grey instead of Gaussian noise. The loss includes known
pixels. The multi-task model has the task as a condition, and also learns uncropping. The paper samples with other betas
than it trains with, and its network receives alpha^2; here both betas are those of training (1e-6 to 0.01 in 2000
steps), and the network receives the time, which is equivalent.
Data: a TFDS set ``images_256``, prepared once as array_record. Each condition is computed from the image.

    python -m jaxdiff.train --config configs/palette.py:multi
    python -m jaxdiff.sample --workdir runs/palette --condition task=1 --image source=photo.png --mask mask.png
"""

from ml_collections import ConfigDict

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.partial import PartialImage
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.config import spec
from jaxdiff.data.conditions import Choice, Degrade
from jaxdiff.data.degradations import Grayscale, Jpeg
from jaxdiff.data.masks import BoxMask, FreeFormMask, Hint, Masked, OneOf, Uncrop
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

WIDTH, SIZE, GREY = 256, 256, 0.0
TASKS = {
    "colorize": spec(Hint, degradation=spec(Grayscale)),
    "inpaint": spec(Masked, mask=spec(OneOf, masks=(spec(FreeFormMask), spec(BoxMask))), fill=GREY),
    "uncrop": spec(Masked, mask=spec(Uncrop), fill=GREY),
    "jpeg": spec(Hint, degradation=spec(Jpeg, quality=(5, 30))),
}
VARIANTS = (*TASKS, "multi")


def get_config(variant: str = "multi") -> ConfigDict:
    expect(variant in VARIANTS, "variant", variant, f"one of {', '.join(VARIANTS)}", "choose one of these")
    parts = {"source": spec(PartialImage, channels=3, fill=GREY)}
    if variant == "multi":
        parts["task"] = spec(ClassLabel, num_classes=len(TASKS), width=4 * WIDTH, drop_rate=0.0, null="none")
        given = spec(Choice, field="source", degradations=tuple(TASKS.values()), task_field="task")
    else:
        given = spec(Degrade, field="source", degradation=TASKS[variant])
    attention = spec(PixelAttention, head_dim=64)
    network = spec(
        UNet,
        levels=tuple(
            spec(Level, width=WIDTH * multiple, blocks=2, attention=attention if SIZE >> i <= 32 else None)
            for i, multiple in enumerate((1, 1, 2, 2, 4, 4))
        ),
        out_channels=3,
        block=spec(BlockOptions, min_group_size=1),
        middle=spec(ResidualMiddle, attention=attention),
        dtype="bfloat16",
    )
    conditioner = spec(
        Conditioner,
        noise=spec(NoiseLevel, width=4 * WIDTH),
        conditions=parts,
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
            image_shape=(SIZE, SIZE, 3),
        ),
        optimizer=spec(AdamW, learning_rate=1e-4, schedule=spec(Constant, warmup_steps=10_000)),
        ema=spec(Ema, decay=0.9999),
        data=spec(
            Pipeline,
            source=spec(Tfds, name="images_256", label_key=None),
            conditions=(given,),
            threads=16,
            prefetch=64,
        ),
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
        sample_every=50_000,
    )
