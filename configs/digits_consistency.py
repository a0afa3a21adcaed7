"""Few-step sampling on a laptop: a consistency model distilled from the guided digits of configs/digits.py.

The student starts as the teacher, the run of configs/digits.py, and learns where the teacher's trajectories with
guidance 1.5 end. One or two calls make a sample; the teacher needs 32 (16 steps, two calls each).
Figures: of 1,000 samples with two calls, 99.9 % are of the requested class, recall is 0.798 and the Frechet distance
0.172; the teacher has 100 %, 0.805 and 0.182. Two CPU cores that other work shared, 9.4 CPU minutes
with the evaluation.

    python -m jaxdiff.train --config configs/digits.py
    python -m jaxdiff.train --config configs/digits_consistency.py
    python -m jaxdiff.sample --workdir runs/digits_consistency --label 7 --n 16 --out sevens.png
"""

import pathlib

from ml_collections import ConfigDict

from jaxdiff.config import load, spec
from jaxdiff.process.time_sampling import LogNormalSigma
from jaxdiff.runs.weights import RunWeights
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.consistency import Consistency
from jaxdiff.tasks.consistency_models import ConsistencyDistillation, KarrasGap
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW, Cosine
from jaxdiff.training.transfer import InitFrom

RUN = "runs/digits"


def get_config() -> ConfigDict:
    config = load(str(pathlib.Path(__file__).with_name("digits.py")))
    config.init_from = spec(InitFrom, workdir=RUN)
    config.task.objective = spec(
        ConsistencyDistillation,
        teacher=spec(RunWeights, workdir=RUN),
        guidance=1.5,
        gap=spec(KarrasGap, steps=18),
    )
    config.task.time_sampler = spec(LogNormalSigma, mean=0.0, std=2.0)
    config.optimizer = spec(AdamW, learning_rate=1e-3, schedule=spec(Cosine, warmup_steps=50))
    config.ema = spec(Ema, decay=0.99)
    config.sampling = spec(
        Recipe,
        sampler=spec(Consistency),
        grid=spec(Karras, sigma_min=0.8, sigma_max=40.0),
        guidance=spec(ClassifierFree),  # scale 1: the student has learned the teacher's
        steps=2,
    )
    config.steps = 800
    config.checkpoint_every = 400
    config.sample_every = 0
    return config
