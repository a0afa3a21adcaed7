"""The sampler of an experiment as a program for devices that need not be there: no parameters, and no arrays."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.distributed import partitioning
from jaxdiff.experiment import Experiment
from jaxdiff.generation import checks, compiled
from jaxdiff.generation.compiled import GenerationInputs
from jaxdiff.generation.model import SampledModel
from jaxdiff.training.state import abstract_params
from jaxdiff.trees import merge
from jaxdiff.typing import Params


def lower_sampler(experiment: Experiment, mesh: jax.sharding.Mesh, n: int) -> Any:
    """The program with which `Generator` makes one batch of samples, lowered for the devices of a mesh.

    Every condition is given, and the guidance is that of the recipe. Images that conditions know in part are
    generated as a whole.

    Args:
      experiment: the experiment. Its data are not opened.
      mesh: the devices that share the batch.
      n: number of samples; a batch has the next power of two, as `Generator` makes it.

    Returns:
      A ``jax.stages.Lowered``.

    Raises:
      UserError: the task makes no samples, or the recipe needs another model.
    """
    checks.check_experiment(experiment, mesh)
    task: Any = experiment.sampled.for_shapes().for_samples()
    shapes = _placed(task.frozen_shapes(), mesh)
    own = merge(*abstract_params(task, mesh, experiment.optimizer.frozen))
    full = _like(jax.eval_shape(task.full_params, own, shapes), own, mesh)
    codec = {name: tree for name, tree in shapes.items() if name in task.codec.frozen}
    size = tuple(task.image_shape)
    return _Outline(task.denoiser, full, experiment.recipe, size, mesh, codec=task.codec, frozen=codec).lower(
        n
    )


class _Outline(SampledModel):
    """A model whose parameters are shapes."""

    def lower(self, n: int) -> Any:
        rows, recipe = self._rows(n), self._recipe(None, None)
        conditioner: Any = self.denoiser.conditioner
        fields = jax.eval_shape(lambda: conditioner.stored_example(rows, self.data_shape))
        absent = {name: jax.ShapeDtypeStruct((rows,), jnp.bool_) for name in conditioner.conditions}
        index, seed = (jax.ShapeDtypeStruct(shape, jnp.uint32) for shape in ((rows,), ()))
        inputs = GenerationInputs(fields, absent, fields, absent)
        return compiled.lower(self._static, recipe, self._trees, inputs, index, seed)


def _like(tree: Params, own: Params, mesh: jax.sharding.Mesh) -> Params:
    """Shapes of a tree with the shardings of `own`, and of frozen networks where it has others."""
    known = {path: leaf.sharding for path, leaf in jax.tree_util.tree_leaves_with_path(own)}
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=known.get(path, partitioning.shardings(leaf, mesh))
        ),
        tree,
    )


def _placed(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    return _like(tree, {}, mesh)
