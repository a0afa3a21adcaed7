"""A `UNet2DModel` of diffusers, for sampling, evaluation or fine-tuning.

The variant is the folder of a model or of a pipeline. Network, noise schedule and parameterization are those of its
files; see `jaxdiff.convert`.
Hardware and time: those of the model.

    python -m jaxdiff.convert --from ddpm-cifar10-32 --config configs/diffusers.py:ddpm-cifar10-32 --workdir runs/ddpm
    python -m jaxdiff.sample --workdir runs/ddpm --n 64 --out samples.png
"""

from ml_collections import ConfigDict

from jaxdiff.config import describe, spec
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.errors import expect
from jaxdiff.experiment import Experiment
from jaxdiff.interop import diffusers
from jaxdiff.process.time_sampling import UniformSteps
from jaxdiff.sampling.grids.discrete import Leading
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW


def get_config(variant: str = "") -> ConfigDict:
    expect(
        variant != "",
        "variant",
        variant,
        "a folder of diffusers",
        "write configs/diffusers.py:FOLDER",
        "none",
    )
    model, scheduler = diffusers.read_settings(variant)
    shape = (model["sample_size"],) * 2 + (model["in_channels"],)
    steps = scheduler.get("num_train_timesteps", 1000)
    return spec(
        Experiment,
        task=spec(
            DenoisingTask,
            denoiser=describe(diffusers.denoiser(model, scheduler)),
            time_sampler=spec(UniformSteps, steps=steps),
            image_shape=shape,
        ),
        optimizer=spec(AdamW, learning_rate=1e-5),
        ema=spec(Ema, decay=0.9999),
        data=spec(Pipeline, source=spec(Tfds, name="cifar10", label_key=None)),
        sampling=spec(
            Recipe,
            sampler=spec(Ddim),
            grid=spec(Leading, train_steps=steps),
            guidance=spec(ClassifierFree),
            steps=50,
        ),
    )
