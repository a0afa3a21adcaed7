"""Images from a trained model, in Python::

generator = Generator.load("runs/digits")
images = generator(label=[3, 1, 4], seed=0, guidance=2.0)  # uint8 [3, 8, 8, 1]
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import config as configs
from jaxdiff.data import images
from jaxdiff.denoiser import Denoiser
from jaxdiff.distributed import partitioning
from jaxdiff.errors import UserError, require
from jaxdiff.experiment import Experiment, read_config
from jaxdiff.process.gaussian import expand
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.loop import Encoded, Recipe
from jaxdiff.training import step as training_step
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.typing import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """A trained denoiser with a recipe for sampling it.

    Image i is a function of (parameters, seed, i, its conditions): neither the number of images nor the batch that
    it is made in changes its noise.

    Attributes:
      denoiser, params: the model.
      recipe: sampler, grid, steps and guidance.
      image_shape: (height, width, channels) of the images.
      mesh: the devices that share a batch.
      batch_size: the most images that are made at once.
    """

    denoiser: Denoiser
    params: Params
    recipe: Recipe
    image_shape: tuple[int, int, int]
    mesh: jax.sharding.Mesh
    batch_size: int = 256

    @classmethod
    def load(
        cls,
        workdir: str,
        *,
        step: int | None = None,
        overrides: Sequence[tuple[str, str]] = (),
        packages: Sequence[str] = (),
    ) -> "Generator":
        """The averaged weights of a training run.

        Args:
          workdir: the run's folder, with its ``config.json`` and checkpoints.
          step: which checkpoint; the newest if not given.
          overrides: (path, text) pairs that change the stored config, ``("sampling.steps", "10")``.
          packages: packages besides jaxdiff whose classes the stored config may make.
        """
        config = read_config(workdir)
        for path, text in overrides:
            configs.override(config, path, text, packages=("jaxdiff", *packages))
        experiment = configs.build(config, packages=("jaxdiff", *packages))
        mesh = experiment.mesh.make()
        return cls.of(experiment, restore_average(experiment, workdir, mesh, step), mesh)

    @classmethod
    def of(cls, experiment: Experiment, params: Params, mesh: jax.sharding.Mesh) -> "Generator":
        """The generator of an experiment with given weights."""
        return cls(experiment.task.denoiser, params, experiment.sampling, experiment.task.image_shape, mesh)

    def __call__(
        self, n: int | None = None, *, seed: int = 0, guidance: float | None = None, **conditions: Any
    ) -> np.ndarray:
        """Make images.

        Args:
          n: how many; may be left out if a condition tells.
          seed: image i of a seed is always the same.
          guidance: guidance scale instead of the recipe's; 1 is the conditional model itself.
          **conditions: for each condition of the model one value per image, one value for all, or None for its null.

        Returns:
          uint8 images [n, height, width, channels].

        Raises:
          UserError: conditions that the model lacks, needs, or that are out of range; an image that is not finite.
        """
        fields, absent, n = self._fields(n, conditions)
        require(0 <= seed < 2**32, "seed", seed, "it is not a 32-bit number", "give 0 to 4294967295")
        recipe = self.recipe
        rule: Any = recipe.guidance
        if guidance is not None:
            require(hasattr(rule, "scale"), "guidance", guidance, "this recipe has no guidance scale",
                    "use a guidance that has one, such as ClassifierFree")  # fmt: skip
            recipe = dataclasses.replace(recipe, guidance=dataclasses.replace(rule, scale=float(guidance)))
        size = self._program_size(n)
        parts = []
        for first in range(0, n, size):
            index = np.arange(first, first + size, dtype=np.uint32)
            rows = np.minimum(
                index, n - 1
            )  # the last batch is filled up with copies, which are cut off again
            chosen = jax.tree.map(lambda value, rows=rows: value[rows], (fields, absent))
            made = np.asarray(_generate(self._program, recipe, self.params, *chosen, index, np.uint32(seed)))
            parts.append(made[: n - first])
        return images.to_uint8(np.concatenate(parts))

    def _fields(self, n: int | None, conditions: Mapping[str, Any]) -> tuple[dict, dict, int]:
        """Conditions as arrays with n rows, and which of them are absent."""
        parts = self.denoiser.conditioner.parts
        for name in conditions:
            require(
                name in parts,
                name,
                conditions[name],
                "the model has no such condition",
                f"it has: {', '.join(parts) or 'none'}",
            )
        missing = [name for name in parts if name not in conditions]
        if missing:
            raise UserError(
                f"{missing[0]}=: the model needs it. Fix: give {', '.join(missing)}, or None for no condition"
            )
        lengths = {name: len(value) for name, value in conditions.items() if np.ndim(value) > 0}
        if n is None:
            n = next(iter(lengths.values()), 1)
        require(n > 0, "n", n, "there would be no image", "give at least 1")
        examples = self.denoiser.conditioner.example(1)
        fields, absent = {}, {}
        for name, value in conditions.items():
            absent[name] = np.full(n, value is None)
            if value is None:
                fields[name] = np.repeat(np.asarray(examples[name]), n, axis=0)
                continue
            if lengths.get(name, n) != n:
                raise UserError(
                    f"{name}: {lengths[name]} values for {n} images. Fix: give one for each, or one for all"
                )
            fields[name] = np.broadcast_to(np.asarray(value), (n, *np.shape(value)[1:]))
        self.denoiser.conditioner.check(
            {name: fields[name] for name in fields if conditions[name] is not None}
        )
        return fields, absent, n

    def _program_size(self, n: int) -> int:
        """Rows of the compiled program: powers of two, that few are compiled, which the devices share evenly."""
        rows = math.prod(self.mesh.shape[axis] for axis in partitioning.BATCH_AXES)
        size = min(self.batch_size, 1 << (n - 1).bit_length())
        return -(-size // rows) * rows

    @property
    def _program(self) -> "_Program":
        return _Program(self.denoiser, self.image_shape, self.mesh)


@dataclasses.dataclass(frozen=True)
class _Program:
    """What a compiled sampler is specific to, besides its recipe."""

    denoiser: Denoiser
    image_shape: tuple[int, int, int]
    mesh: jax.sharding.Mesh


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(program: _Program, recipe: Recipe, params, fields, absent, index, seed):
    """Float images for global image numbers `index`, the same on every process."""
    denoiser = program.denoiser
    shared = partitioning.batch_sharding(program.mesh)
    fields, absent, index = jax.lax.with_sharding_constraint((fields, absent, index), shared)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index)

    variables = {"params": params}
    dropped = denoiser.conditioner.all_dropped(index.shape[0])
    given, null = (denoiser.apply(variables, fields, drop, method="encode") for drop in (absent, dropped))
    conditions = {name: Encoded(given[name], null[name]) for name in given}

    def denoise(x, t, conditions, drop) -> Prediction:
        times = jnp.broadcast_to(t, x.shape[:1])
        encoded = {name: _shown(conditions[name], drop[name]) for name in conditions}
        prediction: Any = denoiser.apply(variables, x, times, encoded, method="predict_encoded")
        return prediction

    made = recipe(denoise, denoiser.process_of(params), conditions, program.image_shape, keys)
    return jax.lax.with_sharding_constraint(made, partitioning.replicated(program.mesh))


def _shown(condition: Encoded, drop) -> Any:
    """The condition, or its null where it is dropped."""
    return jax.tree.map(
        lambda given, null: jnp.where(expand(drop, given), null, given), condition.given, condition.null
    )


def restore_average(
    experiment: Experiment, workdir: str, mesh: jax.sharding.Mesh, step: int | None = None
) -> Params:
    """The averaged weights of a checkpoint, placed on `mesh`."""
    optimizer = experiment.optimizer.make(experiment.steps)
    abstract = training_step.abstract_state(experiment.task, optimizer, mesh).ema
    with Checkpoints(f"{workdir}/checkpoints", read_only=True) as checkpoints:
        found = checkpoints.latest() if step is None else step
        if found is None:
            raise UserError(f"--workdir={workdir}: there is no checkpoint yet. Fix: train first")
        return checkpoints.restore_ema(found, abstract)
