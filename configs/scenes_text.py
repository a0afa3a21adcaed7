"""Text to image on a laptop: scenes of coloured digits, with a text encoder trained from scratch.

Data: scenes of 24 x 24 pixels with one to three scanned digits, "a red three above a green seven". 16,000 scenes are
for training, and 1,000 in held-out compositions for testing. Captions are sequences of bytes, which the encoder groups
into words; it is a transformer trained together with the U-Net.

    python -m jaxdiff.train --config configs/scenes_text.py
"""

from ml_collections import ConfigDict

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.text import Text
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.config import spec
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.data.text import ByteTokenizer, Tokenize
from jaxdiff.denoiser import Denoiser
from jaxdiff.evaluation.scenes.report import SceneEvaluation
from jaxdiff.experiment import Experiment
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.text_encoder import ByteTransformer
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
TOKENIZER = spec(ByteTokenizer, length=80)  # longer than the longest caption
SIGMA_DATA = 0.32  # standard deviation of the pixels


def get_config() -> ConfigDict:
    tokens = spec(PixelAttention, self_attention=False, cross_attention=True, head_dim=32)
    both = spec(PixelAttention, cross_attention=True, head_dim=32)
    network = spec(
        UNet,
        levels=(
            spec(Level, width=WIDTH, blocks=1, attention=tokens),
            spec(Level, width=2 * WIDTH, blocks=1, attention=tokens),
            spec(Level, width=3 * WIDTH, blocks=1, attention=both),
        ),
        out_channels=3,
        middle=spec(ResidualMiddle, attention=both),
        coordinates=True,
        resampling="conv",
        resampled_skips=False,
    )
    text = spec(
        Text,
        tokenizer=TOKENIZER,
        encoder=spec(
            ByteTransformer,
            width=128,
            layers=2,
            window=5,
            words=18,
            phrase=9,  # long enough for "to the left of" between two digits
            head_dim=32,
            expansion=2,
        ),
        vector_width=4 * WIDTH,
    )
    conditioner = spec(Conditioner, noise=spec(NoiseLevel, width=4 * WIDTH), conditions={"text": text})
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
            time_sampler=spec(LogNormalSigma, mean=0.4, std=1.0),
            objective=spec(WeightedError, weighting=spec(EdmWeighting, sigma_data=SIGMA_DATA)),
            image_shape=(24, 24, 3),
        ),
        optimizer=spec(Muon, learning_rate=2e-3, schedule=spec(Cosine, warmup_steps=50), iterations=4),
        ema=spec(Ema, decay=0.998),
        data=pipeline("train"),
        test_data=pipeline("novel"),
        sampling=spec(
            Recipe,
            sampler=spec(DpmSolver2M),
            grid=spec(Karras, sigma_min=0.02, sigma_max=20.0),
            guidance=spec(ClassifierFree, scale=4.0),
            steps=12,
        ),
        evaluation=spec(SceneEvaluation, n=500),
        steps=5600,
        batch_size=16,
        log_every=100,
        checkpoint_every=1400,
        sample_every=2800,
    )


def pipeline(split: str) -> ConfigDict:
    source = spec(
        Tfds,
        name="scenes",
        split=split,
        label_key=None,
        text_key="caption",
        fields=("relation", "count", "digits", "colours"),  # for the classifier of the evaluation
    )
    return spec(Pipeline, source=source, conditions=(spec(Tokenize, tokenizer=TOKENIZER),), cache=True)
