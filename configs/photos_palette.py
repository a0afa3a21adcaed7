"""Palette on a laptop: one model for colourising, inpainting, uncropping and sketches, at 32 x 32 pixels.

Data: crops of scikit-learn's two photographs; a band of rows of each is held out. The condition is an image with
transparency; samples reproduce its opaque pixels exactly. The command uses two CPU cores, each for half of a batch.

    JAX_NUM_CPU_DEVICES=2 python -m jaxdiff.train --config configs/photos_palette.py
"""

from ml_collections import ConfigDict

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.partial import PartialImage
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.config import spec
from jaxdiff.data.conditions import Choice
from jaxdiff.data.degradations import Edges, Grayscale
from jaxdiff.data.masks import BoxMask, Hint, Masked, Uncrop
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.data.transforms import HorizontalFlip
from jaxdiff.denoiser import Denoiser
from jaxdiff.evaluation.reports.image_to_image import TranslationEvaluation
from jaxdiff.experiment import Experiment
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import VarianceExploding
from jaxdiff.process.prediction import Edm
from jaxdiff.process.time_sampling import LogNormalSigma
from jaxdiff.process.weighting import Edm as EdmWeighting
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver2M
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.tasks.objectives import WeightedError
from jaxdiff.training.ema import Ema
from jaxdiff.training.muon import Muon
from jaxdiff.training.optimizer import Cosine

WIDTH = 32
SIGMA_DATA = 0.68  # standard deviation of the pixels
FILL = 0.0  # grey, where nothing is known
TASKS = ("colourise", "inpaint", "uncrop", "sketch")


def get_config() -> ConfigDict:
    network = spec(
        UNet,
        levels=(
            spec(Level, width=WIDTH, blocks=1),
            spec(Level, width=2 * WIDTH, blocks=1),
            spec(Level, width=3 * WIDTH, blocks=1, attention=spec(PixelAttention, head_dim=32)),
        ),
        out_channels=3,
        resampling="conv",
    )
    conditioner = spec(
        Conditioner,
        noise=spec(NoiseLevel, width=4 * WIDTH),
        conditions={
            "source": spec(PartialImage, fill=FILL),
            "task": spec(ClassLabel, num_classes=len(TASKS), width=4 * WIDTH, drop_rate=0.0, null="none"),
        },
    )
    return spec(
        Experiment,
        task=spec(
            DenoisingTask,
            denoiser=spec(
                Denoiser,
                network=network,
                conditioner=conditioner,
                process=spec(VarianceExploding, sigma_min=0.002, sigma_max=80.0),
                parameterization=spec(Edm, sigma_data=SIGMA_DATA),
            ),
            time_sampler=spec(LogNormalSigma, mean=-0.8, std=1.2),
            objective=spec(WeightedError, weighting=spec(EdmWeighting, sigma_data=SIGMA_DATA)),
            image_shape=(32, 32, 3),
        ),
        optimizer=spec(Muon, learning_rate=2e-3, schedule=spec(Cosine, warmup_steps=50)),
        ema=spec(Ema, decay=0.998),
        data=spec(
            Pipeline,
            source=spec(Tfds, name="photos/32", split="train", label_key=None),
            transforms=(spec(HorizontalFlip),),
            conditions=(SOURCE,),
            cache=True,
        ),
        test_data=spec(
            Pipeline,
            source=spec(Tfds, name="photos/32", split="test", label_key=None),
            conditions=(SOURCE,),
            cache=True,
        ),
        sampling=spec(
            Recipe,
            sampler=spec(DpmSolver2M),
            # Training rarely draws more noise than this. With sigma_max = 80, samples from sketches lose their colours.
            grid=spec(Karras, sigma_min=0.02, sigma_max=10.0),
            guidance=spec(ClassifierFree),
            steps=16,
        ),
        evaluation=spec(
            TranslationEvaluation,
            tasks=TASKS,
            keep_luma=("colourise",),
            hints=(spec(Grayscale), None, None, spec(Edges)),
            n=256,
            samples_per_input=2,
        ),
        steps=1400,
        batch_size=32,
        log_every=50,
        checkpoint_every=500,
        sample_every=700,
    )


SOURCE = spec(
    Choice,
    field="source",
    degradations=(
        spec(Hint, degradation=spec(Grayscale)),
        spec(Masked, mask=spec(BoxMask, side=(0.3, 0.6)), fill=FILL),
        spec(Masked, mask=spec(Uncrop), fill=FILL),
        spec(Hint, degradation=spec(Edges)),
    ),
)
