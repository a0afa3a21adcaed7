"""A small trained run in a folder, and the first state of a run that starts from it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import config as configs
from jaxdiff.cli import app as command
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.vector import ClassLabel
from jaxdiff.config import spec
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.unet import Level, UNet
from jaxdiff.runs import init_from as starting
from jaxdiff.training import step
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.state import abstract_state
from jaxdiff.training.transfer import InitFrom
from tests.commands import DIGITS, TINY

WIDTH = 32
CLASSES = spec(ClassLabel, num_classes=10, width=WIDTH)
MAP = {"map": spec(ImageCondition, channels=2)}
READS_TOKENS = (
    "jaxdiff.models.pixel_attention:PixelAttention(self_attention=False,cross_attention=True,head_dim=8)"
)


def first_state(experiment, mesh):
    return starting.first_state(experiment, mesh, {})[0]


def a_config(parts=None, **changes):
    config = command.load_config(DIGITS, [tuple(word.removeprefix("--config.").split("=")) for word in TINY])
    level = spec(Level, width=16, blocks=1)
    config.task.denoiser.network = spec(
        UNet, levels=(level,), out_channels=1, middle=spec(ResidualMiddle, attention=None)
    )
    config.task.denoiser.conditioner.conditions = {"label": CLASSES} | (parts or {})
    for path, text in changes.items():
        command.override(config, path.replace("__", "."), text)
    return config


def build(config, workdir=None, **options):
    experiment = configs.build(config)
    return (
        experiment
        if workdir is None
        else dataclasses.replace(experiment, init_from=InitFrom(str(workdir), **options))
    )


def a_mesh():
    types = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=types, devices=jax.devices()[:1])


def trained(abstract, seed):
    """Parameters without zeros."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype), abstract)


def store(config, folder):
    """A trained run with this config: the parameters of step 3, and the average, also of step 7."""
    experiment, mesh = configs.build(config), a_mesh()
    abstract = abstract_state(experiment.task, experiment.optimizer.make(10), mesh).params
    (folder / "config.json").write_text(configs.to_json(config))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        params, ema = trained(abstract, 0), trained(abstract, 1)
        for number, other in ((3, params), (7, trained(abstract, 2))):
            checkpoints.save(number, step.TrainState(jnp.int32(number), other, ema, opt_state=()))
        checkpoints.wait()
    return experiment, params, ema


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
