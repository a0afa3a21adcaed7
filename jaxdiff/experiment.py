"""An experiment: everything that a config says, as objects. The one place where parts of all layers meet."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.data.pipeline import Pipeline
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.errors import UserError, require
from jaxdiff.evaluation.protocols import Evaluator
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.training.ema import EmaProfile
from jaxdiff.training.finetune import InitFrom
from jaxdiff.training.optimizer import Optimizer


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run and how it is sampled and judged.

    Attributes:
      task: what is learned.
      optimizer, ema: how the parameters move, and how they are averaged for sampling.
      data: the training examples; `test_data`: held-out ones, for evaluation only.
      sampling: sampler, grid, steps and guidance of sample grids, `jaxdiff.sample` and `jaxdiff.evaluate`.
      evaluation: how samples are judged when training ends and by `jaxdiff.evaluate`; None for not at all.
      init_from: another run, from whose parameters this one starts; None for fresh ones.
      mesh: how devices share the work.
      seed: of initialisation, data order and every draw.
      steps: optimizer steps in all.
      batch_size: examples per optimizer step, over all devices.
      accumulation: micro-batches per step, to save memory; does not change what is drawn.
      log_every, checkpoint_every: in steps.
      sample_every: in steps; 0 for never.
      keep: how many checkpoints stay.
    """

    task: DenoisingTask
    optimizer: Optimizer
    ema: EmaProfile
    data: Pipeline
    sampling: Recipe
    test_data: Pipeline | None = None
    evaluation: Evaluator | None = None
    init_from: InitFrom | None = None
    mesh: MeshShape = MeshShape()
    seed: int = 0
    steps: int = 100_000
    batch_size: int = 128
    accumulation: int = 1
    log_every: int = 100
    checkpoint_every: int = 1000
    keep: int = 2
    sample_every: int = 1000

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulation", "log_every", "checkpoint_every", "keep"):
            require(getattr(self, name) > 0, name, getattr(self, name), "it is a count", "give at least 1")
        require(
            self.sample_every >= 0,
            "sample_every",
            self.sample_every,
            "it counts steps",
            "give 0 for never, or more",
        )
        require(0 <= self.seed < 2**32, "seed", self.seed, "32 bits are used", "choose from 0 to 2^32 - 1")
        require(self.evaluation is None or self.test_data is not None, "test_data", self.test_data,
                "evaluation needs held-out examples", "give test_data, or evaluation=None")  # fmt: skip

    def check(self, devices: int) -> None:
        """Raise `UserError` where data, network and devices do not fit each other; before anything is compiled."""
        rows = devices // self.mesh.tensor * self.accumulation
        if self.batch_size % rows:
            below, above = self.batch_size // rows * rows, -(-self.batch_size // rows) * rows
            nearest = f"{below} or {above}" if below else str(above)
            raise UserError(
                f"config.batch_size={self.batch_size}: it does not divide over {devices} devices with "
                f"accumulation={self.accumulation}. Fix: use {nearest}"
            )
        source, example = self.data.source.open(), self.data.example()
        shape = tuple(np.shape(example["image"]))
        if shape != tuple(self.task.image_shape):
            raise UserError(
                f"config.task.image_shape={self.task.image_shape}: the images of {_name(self.data.source)} are "
                f"{shape}. Fix: use the same shape"
            )
        conditioner: Any = self.task.denoiser.conditioner
        given = {name: np.asarray(example[name])[None] for name in conditioner.conditions if name in example}
        for name in conditioner.conditions:
            if name not in given and not conditioner.has_default(name):
                raise UserError(
                    f"config.data: the model has the condition {name}, and the examples lack it; they have "
                    f"{', '.join(example)}. Fix: let data.conditions make it, or remove the condition"
                )
        # Texts that nothing has made numbers of are no arrays of JAX; their condition says so.
        given = {
            name: value if value.dtype.kind in "USO" else jnp.asarray(value) for name, value in given.items()
        }
        fields = conditioner.draw(given, jax.random.split(jax.random.key(0), 1), train=False)
        conditioner.check({name: fields[name] for name in given})
        label = self.task.denoiser.conditioner.conditions.get("label")
        if label is not None and source.num_classes != label.num_classes:
            raise UserError(
                f"config.task.denoiser.conditioner.conditions.label.num_classes={label.num_classes}: "
                f"{_name(self.data.source)} has {source.num_classes} classes. Fix: use the same number"
            )


def _name(source: Any) -> str:
    return getattr(source, "name", type(source).__name__)
