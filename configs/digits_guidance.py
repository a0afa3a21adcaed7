"""Guidance distillation on a laptop: digits with any guidance scale, in one call of the network for each step.

The student starts as the teacher, the run of configs/digits.py, and has one condition more, the guidance scale. It
learns the teacher's guided predictions, which need two calls for each step.
Figures: of 1,000 samples with 16 steps at scale 1.5, 100 % are of the requested class, recall is 0.828 and the Frechet
distance 0.179; the teacher has 100 %, 0.795 and 0.182. Two CPU cores that other work shared, 3.3 CPU minutes with the
evaluation.

    python -m jaxdiff.train --config configs/digits.py
    python -m jaxdiff.train --config configs/digits_guidance.py
    python -m jaxdiff.sample --workdir runs/digits_guidance --label 7 --condition scale=3 --n 16 --out sevens.png
"""

import pathlib

from ml_collections import ConfigDict

from jaxdiff.conditioning.guidance_scale import GuidanceScale
from jaxdiff.config import load, spec
from jaxdiff.process.weighting import Edm
from jaxdiff.runs.weights import RunWeights
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.tasks.distillation import GuidanceDistillation
from jaxdiff.tasks.objectives import WeightedError
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW, Cosine
from jaxdiff.training.transfer import InitFrom

RUN = "runs/digits"


def get_config() -> ConfigDict:
    config = load(str(pathlib.Path(__file__).with_name("digits.py")))
    config.init_from = spec(InitFrom, workdir=RUN)
    denoiser = config.task.denoiser
    conditions = denoiser.conditioner.conditions
    with conditions.unlocked():
        width = denoiser.conditioner.noise.width
        conditions.scale = spec(GuidanceScale, width=width, low=1.0, high=4.0, default=1.5)
    config.task.objective = spec(
        GuidanceDistillation,
        teacher=spec(RunWeights, workdir=RUN),
        scales="scale",
        error=spec(WeightedError, weighting=spec(Edm, sigma_data=denoiser.parameterization.sigma_data)),
    )
    config.optimizer = spec(AdamW, learning_rate=1e-3, schedule=spec(Cosine, warmup_steps=50))
    config.ema = spec(Ema, decay=0.99)
    config.sampling.guidance = spec(ClassifierFree)  # scale 1: the condition has the scale
    config.steps = 400
    config.checkpoint_every = 400
    config.sample_every = 0
    return config
