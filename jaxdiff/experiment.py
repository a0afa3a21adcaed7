"""An experiment: everything in a config, as objects. The one place where parts of all layers meet."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from flax.core import FrozenDict

from jaxdiff.data.buckets import Buckets
from jaxdiff.data.classes import Labelled, Names
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import LABEL
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.errors import UserError, between, expect, positive
from jaxdiff.evaluation.held_out import HeldOutLoss
from jaxdiff.evaluation.protocols import Evaluator, PredictionEvaluator
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.tasks.protocols import Predictive, Sampleable
from jaxdiff.training.ema import EmaProfile
from jaxdiff.training.fault_tolerance import FaultTolerance
from jaxdiff.training.optimizer import Optimizer
from jaxdiff.training.retention import Retention
from jaxdiff.training.step import Task, check_accumulation
from jaxdiff.training.transfer import InitFrom


@runtime_checkable
class SampledTask(Task, Sampleable, Protocol):
    """A task that is trained and makes samples."""

    def for_shapes(self) -> "SampledTask": ...


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run, and how it is sampled and evaluated.

    Attributes:
      task: what is trained.
      optimizer, ema: how the parameters are updated, and how they are averaged for sampling.
      data: the training examples; `test_data`: held-out ones, for evaluation only.
      sampling: sampler, grid, steps and guidance of sample grids, `jaxdiff.sample` and `jaxdiff.evaluate`; None for a
        task that makes no samples.
      recipes: recipes by the names under which ``--sampler`` finds them, see `jaxdiff.sampling.names.plain`; for other
        names it is the sampler's class. `jaxdiff.sweep --apply` adds presets here.
      evaluation: what is measured during training, at its end and by `jaxdiff.evaluate`; None for nothing.
      held_out_loss: the loss on the test data, logged during training; None for none. It needs no samples.
      init_from: another run whose parameters this one starts from; None for fresh ones.
      mesh: how devices share the work.
      seed: of initialisation, data order and every random draw.
      steps: optimizer steps in total.
      batch_size: examples per optimizer step, over all devices.
      accumulation: micro-batches per step, to save memory; does not change the random draws.
      log_every, checkpoint_every: in steps.
      sample_every: steps between sample grids; 0 for none.
      keep: number of latest checkpoints to keep.
      keep_also: further checkpoints that stay: at intervals, or the best by a metric; None for no others.
      fault_tolerance: what happens after updates that are not finite, after spikes of the loss, and when a run hangs.
    """

    task: Task
    optimizer: Optimizer
    ema: EmaProfile
    data: Pipeline
    sampling: Recipe | None = None
    test_data: Pipeline | None = None
    evaluation: Evaluator | PredictionEvaluator | None = None
    held_out_loss: HeldOutLoss | None = None
    init_from: InitFrom | None = None
    mesh: MeshShape = MeshShape()
    seed: int = 0
    steps: int = 100_000
    batch_size: int = 128
    accumulation: int = 1
    log_every: int = 100
    checkpoint_every: int = 1000
    keep: int = 2
    keep_also: Retention | None = None
    sample_every: int = 1000
    recipes: Mapping[str, Recipe] = FrozenDict()
    fault_tolerance: FaultTolerance = FaultTolerance()

    def __post_init__(self):
        positive(self, "steps", "batch_size", "accumulation", "log_every", "checkpoint_every", "keep")
        between(self, "sample_every", 0, float("inf"))
        between(self, "seed", 0, 2**32 - 1)
        expect(self.evaluation is None or self.test_data is not None, "test_data", self.test_data,
               "held-out examples for the evaluation", "give test_data, or evaluation=None")  # fmt: skip
        self._check_held_out_loss()
        encoded, fix = getattr(self.test_data, "encoded", None), "leave it out"
        expect(encoded is None, "test_data.encoded", encoded, "None, since only training reads a cache", fix)
        check_accumulation(self.task, self.accumulation)
        self._check_use_of_samples("sample_every")
        if isinstance(self.evaluation, PredictionEvaluator):
            kind, fix = type(self.task).__name__, "use an evaluation of samples, or None"
            predicts = isinstance(self.task, Predictive)
            expect(predicts, "evaluation", self.evaluation, "a task with predictions", fix, kind)
        else:
            self._check_use_of_samples("evaluation")

    def _check_held_out_loss(self) -> None:
        if self.held_out_loss is None:
            return
        fix, loss = "give test_data, or held_out_loss=None", self.held_out_loss
        expect(self.test_data is not None, "test_data", None, "held-out examples for the loss", fix)
        fix, kind = "use such a task, or held_out_loss=None", type(self.task).__name__
        samples = self.sampling is not None and isinstance(self.task, Sampleable)
        expect(samples, "held_out_loss", loss, "a task with samples and a recipe", fix, kind)

    def _check_use_of_samples(self, field: str) -> None:
        """Raise `UserError` where a field needs samples, and images, of a task that gives none."""
        value, task = getattr(self, field), self.task
        if not value:
            return
        kind = type(task).__name__
        if self.sampling is None or not isinstance(task, Sampleable):
            fix = f"give a sampling recipe and a task that makes samples, or no {field}"
            raise UserError(f"{field}={value!r}: expected a task with samples, got {kind}. Fix: {fix}")
        if len(task.image_shape) != 3 or task.data_field != "image":
            got = f"data_field={task.data_field!r} of shape {tuple(task.image_shape)}"
            raise UserError(
                f"{field}={value!r}: expected images in the field 'image', got {got}. Fix: use no {field}"
            )

    @property
    def sampled(self) -> SampledTask:
        """The task, if it makes samples.

        Raises:
          UserError: it makes none, or there is no recipe.
        """
        task: Any = self.task
        fix = "use a run whose task makes samples, such as DenoisingTask"
        samples = self.sampling is not None and isinstance(self.task, Sampleable)
        expect(samples, "config.task", type(task).__name__, "a task with samples and a sampling recipe", fix)
        return task

    @property
    def recipe(self) -> Recipe:
        """The sampling recipe; raises `UserError` if there is none."""
        recipe = self.sampling
        expect(recipe is not None, "config.sampling", None, "a sampling recipe", "give spec(Recipe, ...)")
        assert recipe is not None
        return recipe

    def check_devices(self, devices: int) -> None:
        """Raise `UserError` where the batches cannot be shared by the devices."""
        rows = devices // self.mesh.tensor * self.accumulation
        if self.batch_size % rows:
            below, above = self.batch_size // rows * rows, -(-self.batch_size // rows) * rows
            nearest = f"{below} or {above}" if below else str(above)
            raise UserError(
                f"config.batch_size={self.batch_size}: expected a multiple of {devices} devices with "
                f"accumulation={self.accumulation}, got {self.batch_size}. Fix: use {nearest}"
            )

    def check_data(self) -> None:
        """Raise `UserError` where the training or the test data do not fit the task."""
        if self.data.buckets is not None:
            self._check_buckets(self.data.buckets)
        self.task.check(self.data.example(), self.data.num_classes())
        if self.test_data is not None:
            try:
                self._check_held_out(self.test_data)
            except UserError as error:
                raise UserError(_about_test_data(str(error))) from None

    def _check_buckets(self, buckets: Buckets) -> None:
        """Raise `UserError` where the model has another size, or cannot work on images of all shapes."""
        if not isinstance(self.task, Sampleable):
            return
        task: Any = self.task
        nominal, size = tuple(task.image_shape[:2]), buckets.size
        field, fix = "config.data.buckets.size", "give the buckets or the task another size"
        expected = f"the sides of config.task.image_shape, {nominal}"
        expect(nominal == (size, size), field, size, expected, fix)
        side = math.gcd(*itertools.chain(*buckets.shapes))  # a factor divides it if and only if all sides
        try:
            small = dataclasses.replace(task, image_shape=(side, side, *task.image_shape[2:]))
            jax.eval_shape(lambda: small.init(jax.random.key(0)))
        except UserError as error:
            why = error.message.partition(". Fix:")[0]
            raise UserError(
                f"config.data.buckets.step={buckets.step}: expected sides that the model can divide, got multiples of "
                f"{side} ({why}). Fix: use a larger step"
            ) from error

    def _check_held_out(self, data: Pipeline) -> None:
        check = self.task.check_held_out if isinstance(self.task, Sampleable) else self.task.check
        check(data.example(), data.num_classes())

    @property
    def uses_labels(self) -> bool:
        """Whether labels matter: the denoiser has a condition of that name, or the task is no denoiser."""
        task = self.task
        return LABEL in task.denoiser.conditioner.conditions if isinstance(task, Sampleable) else True

    def with_classes(self, classes: Names | None) -> "Experiment":
        """This experiment with the labels of a class table in all its data; None changes nothing."""
        if classes is None:
            return self
        pipelines = {name: getattr(self, name) for name in ("data", "test_data")}
        return dataclasses.replace(
            self,
            **{
                name: dataclasses.replace(pipeline, source=Labelled(pipeline.source, classes))
                for name, pipeline in pipelines.items()
                if pipeline is not None
            },
        )


def _about_test_data(message: str) -> str:
    """An error about data as one about the test data."""
    known = message.startswith("config.data")
    return (
        f"config.test_data{message.removeprefix('config.data')}" if known else f"config.test_data: {message}"
    )
