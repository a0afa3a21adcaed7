"""Consistency models of published networks, in one or two calls: ECT alone, and CMT before it.

variant               objective            starts from              batch  steps    published FID in 1 / 2 calls
cifar10               ConsistencyTuning    edm:cifar10_uncond       128    200,000  3.86 / 2.15
cifar10_cmt           MidTraining          edm:cifar10_uncond       8      300,000
cifar10_cmt_ect       ConsistencyTuning    cifar10_cmt              128    100,000  2.74 / 1.97
imagenet64            ConsistencyTuning    edm2:s                   128    100,000  4.05 / 2.79
imagenet64_cmt        MidTraining          edm2:s                   8      100,000
imagenet64_cmt_ect    ConsistencyTuning    imagenet64_cmt           128    100,000

Sources: Geng et al. 2024, "Consistency models made easy" (ECT), and Hu et al. 2025, "Consistency mid-training" (CMT),
with the authors' published settings. A run of `jaxdiff.convert` in place of the first one starts from published
weights: name it in init_from.workdir, and in task.objective.teacher.workdir for mid-training.
Mid-training: a batch is 8 trajectories of the teacher with 16 points each. Of the data only labels are used.
Differences: Adam with a warm-up of 1,000 steps replaces RAdam on CIFAR-10. The distance of mid-training is the L2 norm
of pixels, not LPIPS. On ImageNet-64, CMT has its authors' settings for ImageNet-512.
From memory, not checked: the published FIDs of ECT on ImageNet-64.
Hardware and time: not run here. bfloat16 as in the configs that they start from.
Data: as in configs/edm.py and configs/edm2.py.

    python -m jaxdiff.train --config configs/edm.py:cifar10_uncond
    python -m jaxdiff.train --config configs/consistency.py:cifar10_cmt
    python -m jaxdiff.train --config configs/consistency.py:cifar10_cmt_ect
    python -m jaxdiff.sample --workdir runs/consistency_cifar10_cmt_ect --n 64 --out two_calls.png
"""

import math
import pathlib

from ml_collections import ConfigDict

from jaxdiff.config import load, spec
from jaxdiff.errors import expect
from jaxdiff.process.time_sampling import LogNormalSigma
from jaxdiff.process.weighting import Edm as EdmWeighting
from jaxdiff.runs.weights import RunWeights
from jaxdiff.sampling.grids.continuous import Karras, LogSnrUniform
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.consistency import Consistency
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver2M
from jaxdiff.tasks.consistency_models import ConsistencyTuning, ShrinkingGap
from jaxdiff.tasks.distances import PseudoHuber
from jaxdiff.tasks.mid_training import MidTraining
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import Constant
from jaxdiff.training.transfer import InitFrom

BATCH, POINTS = 128, 16
NOISE, DATA = -2 * math.log(80.0), -2 * math.log(0.002)  # log-SNR at the ends of a trajectory
L2_NORM = spec(PseudoHuber, c=1e-6)  # the authors' c is 0


def get_config(variant: str = "cifar10") -> ConfigDict:
    expect(variant in VARIANTS, "variant", variant, f"one of {', '.join(VARIANTS)}", "choose one of these")
    return VARIANTS[variant]()


def cifar10(run: str, second: float) -> ConfigDict:
    """A student of EDM's unconditional DDPM++, with more dropout and without augmentation."""
    config = student("edm.py:cifar10_uncond", run, second)
    config.task.augmentation = None
    for level in config.task.denoiser.network.levels:
        level.dropout = 0.2
    config.task.time_sampler = spec(LogNormalSigma, mean=-1.1, std=2.0)
    config.optimizer.schedule = spec(Constant, warmup_steps=1000)
    return config


def imagenet64(run: str) -> ConfigDict:
    """A student of EDM2-S."""
    config = student("edm2.py:s", run, 1.526)
    config.task.denoiser.uncertainty = None
    config.init_from.fresh = ("uncertainty/*",) if run == EDM2_RUN else ()
    config.task.time_sampler = spec(LogNormalSigma, mean=-1.1, std=2.0)
    return config


def student(file: str, run: str, second: float) -> ConfigDict:
    """The config of a published model as a student that starts from `run`; `second` is the level of its second call."""
    config = load(str(pathlib.Path(__file__).with_name(file)))
    config.init_from = spec(InitFrom, workdir=run)
    config.sampling = spec(
        Recipe,
        sampler=spec(Consistency),
        grid=spec(Karras, sigma_min=second, sigma_max=80.0),
        guidance=spec(ClassifierFree),
        steps=2,
    )
    config.batch_size = BATCH
    return config


def tuned(
    config: ConfigDict, steps: int, rate: float, weighting: ConfigDict | None, **gap: float
) -> ConfigDict:
    """Consistency tuning."""
    gap_of_stage = spec(ShrinkingGap, **gap)
    config.task.objective = spec(ConsistencyTuning, gap=gap_of_stage, distance=L2_NORM, weighting=weighting)
    config.optimizer.learning_rate, config.ema, config.steps = rate, spec(Ema, decay=0.9999), steps
    return config


def mid_trained(config: ConfigDict, teacher: str, steps: int) -> ConfigDict:
    """Mid-training on all points of each trajectory."""
    config.task.objective = spec(
        MidTraining,
        teacher=spec(RunWeights, workdir=teacher),
        sampler=spec(DpmSolver2M),
        grid=spec(
            LogSnrUniform, log_snr_min=NOISE, log_snr_max=NOISE + (DATA - NOISE) * (POINTS - 1) / POINTS
        ),
        steps=POINTS,
        pairs=POINTS,
        distance=L2_NORM,
    )
    config.batch_size = BATCH // POINTS
    config.optimizer.learning_rate, config.ema = 2e-4, spec(Ema, decay=0.999)
    config.steps = steps
    return config


def constant(q: float) -> dict[str, float]:
    """A gap of one stage."""
    return {"stage_steps": 10**9, "q": q}


EDM_RUN, EDM2_RUN = "runs/edm_cifar10_uncond", "runs/edm2_s"
SNR = spec(EdmWeighting, sigma_data=0.5)
VARIANTS = {
    "cifar10": lambda: tuned(cifar10(EDM_RUN, 0.821), 200_000, 1e-4, None, stage_steps=25_000, q=2.0),
    "cifar10_cmt": lambda: mid_trained(cifar10(EDM_RUN, 0.77569), EDM_RUN, 300_000),
    "cifar10_cmt_ect": lambda: tuned(
        cifar10("runs/consistency_cifar10_cmt", 0.821), 100_000, 1e-4, None, **constant(4096.0)
    ),
    "imagenet64": lambda: tuned(imagenet64(EDM2_RUN), 100_000, 1e-3, SNR, stage_steps=25_000, q=4.0),
    "imagenet64_cmt": lambda: mid_trained(imagenet64(EDM2_RUN), EDM2_RUN, 100_000),
    "imagenet64_cmt_ect": lambda: tuned(
        imagenet64("runs/consistency_imagenet64_cmt"), 100_000, 1e-6, SNR, **constant(1024.0)
    ),
}
