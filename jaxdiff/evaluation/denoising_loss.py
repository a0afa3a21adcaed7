"""Denoising loss by noise level, and bits per dimension, of given examples under a conditional model."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from jaxdiff.distributed import partitioning
from jaxdiff.distributed.mesh import batch_ways
from jaxdiff.evaluation.metrics.bits_per_dim import Likelihood, measure
from jaxdiff.evaluation.protocols import Examples, Fields
from jaxdiff.process.gaussian import Process
from jaxdiff.tasks.protocols import Sampleable
from jaxdiff.typing import Array, Float, Params, Times

LOG_SNRS = (-10.0, -8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0)
"""Noise levels of `denoising_loss`."""

MOST, BATCH = 256, 64
"""Number of examples, evenly spread over all, and how many are in memory at once."""


@runtime_checkable
class Levels(Protocol):
    """The noise levels at which errors are measured; hashable."""

    def times(self, process: Process, index: Float[Array, "batch"]) -> Float[Array, "levels batch"]:
        """The times of the examples at these positions."""
        ...

    def weights(self, process: Process, t: Times) -> Times:
        """What the squared errors of the clean data at these times are multiplied by."""
        ...


@dataclasses.dataclass(frozen=True)
class LogSnrs:
    """Plain errors at fixed log-SNRs, the same for all examples."""

    values: tuple[float, ...] = LOG_SNRS

    def times(self, process: Process, index: Float[Array, "batch"]) -> Float[Array, "levels batch"]:
        return jnp.stack([jnp.full(index.shape, process.time(jnp.float32(value))) for value in self.values])

    def weights(self, process: Process, t: Times) -> Times:
        return jnp.ones_like(t)


def denoising_loss(
    task: Sampleable,
    params: Params,
    examples: Examples,
    mesh: jax.sharding.Mesh,
    frozen: Mapping[str, Params] = FrozenDict(),
    levels: Levels = LogSnrs(),
    most: int = MOST,
) -> list[float]:
    """Mean squared error of the conditional model's clean data, at each of the levels, with the same noise every time.

    At most `most` examples are used, evenly spread over all; only these are read.

    Args:
      params: all parameters of the denoiser.
      frozen: parameters of the codec's networks, by name.
    """
    chosen = np.linspace(0, len(examples) - 1, min(len(examples), most)).round().astype(int)
    rows = batch_ways(mesh)
    size = -(-min(BATCH, len(chosen)) // rows) * rows
    sums = []
    for first in range(0, len(chosen), size):
        index = np.minimum(np.arange(first, first + size), len(chosen) - 1)  # filled with copies of the last
        batch = examples.rows(chosen[index])
        stored, fields = batch[task.data_field], _conditions(task.denoiser, batch)
        found = _errors_at(task, levels, mesh, params, frozen, stored, fields, np.uint32(first))
        sums.append(np.asarray(found)[:, : len(chosen) - first].sum(axis=1, dtype=float))
    return [float(total / len(chosen)) for total in np.sum(sums, axis=0)]


def bits(
    likelihood: Likelihood,
    denoiser: Any,
    params: Params,
    examples: Examples,
    mesh: jax.sharding.Mesh,
) -> dict[str, Any]:
    """Bits per dimension of examples under a conditional `Denoiser`. See `bits_per_dim.measure`."""
    rows = batch_ways(mesh)

    def bits_of(index: np.ndarray) -> np.ndarray:
        filled = np.resize(index, -(-len(index) // rows) * rows)
        batch = examples.rows(filled)
        fields = _conditions(denoiser, batch)
        found = _bits_at(likelihood, denoiser, mesh, params, batch["image"], fields, filled.astype(np.uint32))
        return np.asarray(found)[: len(index)]

    return measure(likelihood, bits_of, len(examples))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _errors_at(task: Sampleable, levels: Levels, mesh, params, frozen, stored, fields, first):
    stored, fields = _sharded(mesh, (stored, fields))
    process, key = task.denoiser.process_of(params), jax.random.fold_in(jax.random.key(0), first)

    def error(t):
        errors = task.evaluation_loss(params, frozen, stored, fields, t, key)
        return levels.weights(process, t) * errors

    times = levels.times(process, first + jnp.arange(stored.shape[0], dtype=jnp.float32))
    return _replicated(mesh, jax.lax.map(error, times))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _bits_at(likelihood: Likelihood, denoiser, mesh, params, pixels, fields, index):
    pixels, fields, index = _sharded(mesh, (pixels, fields, index))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(likelihood.seed), index)
    fields = denoiser.conditioner.draw(fields, keys, train=False)
    drop = denoiser.conditioner.none_dropped(len(pixels))
    encoded = denoiser.apply({"params": params}, fields, drop, method="encode")

    def denoise(x, t) -> Any:
        times = jnp.broadcast_to(t, x.shape[:1])
        return denoiser.apply({"params": params}, x, times, encoded, method="predict_encoded")

    return _replicated(mesh, likelihood(denoise, denoiser.process_of(params), pixels, keys))


def _conditions(denoiser: Any, batch: Fields) -> Mapping[str, Any]:
    """The conditions among the fields of examples; texts are converted to arrays by their condition."""
    conditioner = denoiser.conditioner
    given = {name: np.asarray(batch[name]) for name in conditioner.conditions if name in batch}
    return {
        name: conditioner.read(name, values) if values.dtype.kind in "USO" else values
        for name, values in given.items()
    }


def _sharded(mesh, tree: Any) -> Any:
    return jax.lax.with_sharding_constraint(tree, partitioning.batch_sharding(mesh))


def _replicated(mesh, values: Any) -> Any:
    return jax.lax.with_sharding_constraint(values, partitioning.replicated(mesh))
