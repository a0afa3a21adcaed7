"""A run of configs/digits.py with a tiny network and random weights: nothing is trained."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff import config as configs
from jaxdiff.cli import app as command
from jaxdiff.runs import workdir as workdirs
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.step import TrainState
from tests.commands import DIGITS, TINY


def a_run(workdir, *overrides):
    """The run's folder, without weights."""
    pairs = [tuple(word.removeprefix("--config.").split("=", 1)) for word in (*TINY, *overrides)]
    config = command.load_config(DIGITS, pairs)
    workdirs.init_workdir(config, str(workdir))
    return configs.build(config)


def with_weights(workdir, experiment, step=1):
    """Random parameters as the checkpoint of a step."""
    params = nn.unbox(jax.jit(experiment.task.init)(jax.random.key(step)))
    # The output of a new U-Net is zero, whatever it is shown.
    params = jax.tree.map(lambda leaf: jnp.where(leaf == 0, 0.05, leaf), params)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(step, TrainState(jnp.int32(step), params=(), ema=params, opt_state=()))
        checkpoints.wait()
