"""Few-step text to image on a laptop: a consistency model distilled from the guided model of configs/scenes_text.py.

The student starts as the teacher, the run of configs/scenes_text.py, and learns where the teacher's trajectories with
guidance 4 end. Four calls of the network make an image; the teacher needs 24 (12 steps, two calls each).
Figures: none, it was not trained to the end yet.

    python -m jaxdiff.train --config configs/scenes_text.py
    python -m jaxdiff.train --config configs/scenes_consistency.py
    python -m jaxdiff.sample --workdir runs/scenes_consistency --text "a red three above a green seven" --out scene.png
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

RUN = "runs/scenes_text"


def get_config() -> ConfigDict:
    config = load(str(pathlib.Path(__file__).with_name("scenes_text.py")))
    config.init_from = spec(InitFrom, workdir=RUN)
    config.task.objective = spec(
        ConsistencyDistillation,
        teacher=spec(RunWeights, workdir=RUN),
        guidance=4.0,
        gap=spec(KarrasGap, steps=18, sigma_max=20.0),
    )
    config.task.time_sampler = spec(LogNormalSigma, mean=0.0, std=1.6)
    config.optimizer = spec(AdamW, learning_rate=5e-4, schedule=spec(Cosine, warmup_steps=50))
    config.ema = spec(Ema, decay=0.99)
    config.sampling = spec(
        Recipe,
        sampler=spec(Consistency),
        grid=spec(Karras, sigma_min=0.3, sigma_max=20.0),
        guidance=spec(ClassifierFree),  # scale 1: the student has learned the teacher's
        steps=4,
    )
    config.steps = 1200
    config.checkpoint_every = 600
    config.sample_every = 0
    return config
