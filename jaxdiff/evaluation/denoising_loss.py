"""What a model makes of given images: its error by noise level, and the bits that it needs for them."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.data import images
from jaxdiff.distributed import partitioning
from jaxdiff.distributed.mesh import batch_ways
from jaxdiff.evaluation.metrics.bits_per_dim import Likelihood, measure
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.typing import Params

LOG_SNRS = (-10.0, -8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0)
"""Noise levels of `errors`."""

MOST, BATCH = 256, 64
"""Examples whose error is taken, evenly spread over all, and how many at once."""


def errors(
    task: DenoisingTask, params: Params, examples: Mapping[str, Any], mesh: jax.sharding.Mesh
) -> list[float]:
    """Mean squared error of what the conditional model makes of noisy images, at each of `LOG_SNRS`.

    `examples` are as `Pipeline.all` gives them; of many, `MOST` are used.
    """
    count = len(examples["image"])
    chosen = np.linspace(0, count - 1, min(count, MOST)).round().astype(int)
    fields, rows = _fields(task.denoiser, examples), batch_ways(mesh)
    size = -(-min(BATCH, len(chosen)) // rows) * rows
    totals = np.zeros(len(LOG_SNRS))
    for first in range(0, len(chosen), size):
        index = np.minimum(np.arange(first, first + size), len(chosen) - 1)  # filled up with copies
        batch = jax.tree.map(lambda values, used=chosen[index]: values[used], fields)
        pixels = images.to_float(examples["image"][chosen[index]])
        found = _errors_at(task, mesh, params, pixels, batch, np.uint32(first))
        totals += np.asarray(found)[:, : len(chosen) - first].sum(axis=1)
    return [float(total / len(chosen)) for total in totals]


def bits(
    likelihood: Likelihood,
    denoiser: Any,
    params: Params,
    examples: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
) -> dict[str, Any]:
    """Bits per dimension that a conditional `Denoiser` needs for examples: an entry of the report."""
    fields, rows = _fields(denoiser, examples), batch_ways(mesh)

    def bits_of(index: np.ndarray) -> np.ndarray:
        filled = np.resize(index, -(-len(index) // rows) * rows)
        given = jax.tree.map(lambda values: values[filled], fields)
        pixels = examples["image"][filled]
        found = _bits_at(likelihood, denoiser, mesh, params, pixels, given, filled.astype(np.uint32))
        return np.asarray(found)[: len(index)]

    return measure(likelihood, bits_of, len(examples["image"]))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _errors_at(task: DenoisingTask, mesh, params, pixels, fields, first):
    pixels, fields = _split(mesh, (pixels, fields))
    process, key = task.denoiser.process_of(params), jax.random.fold_in(jax.random.key(0), first)

    def error(log_snr):
        times = jnp.full(pixels.shape[0], process.time(log_snr))
        return task.evaluation_loss(params, {}, pixels, fields, times, key)

    return _whole(mesh, jax.lax.map(error, jnp.asarray(LOG_SNRS)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _bits_at(likelihood: Likelihood, denoiser, mesh, params, pixels, fields, index):
    pixels, fields, index = _split(mesh, (pixels, fields, index))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(likelihood.seed), index)
    fields = denoiser.conditioner.draw(fields, keys, train=False)
    drop = denoiser.conditioner.none_dropped(len(pixels))
    encoded = denoiser.apply({"params": params}, fields, drop, method="encode")

    def denoise(x, t) -> Any:
        times = jnp.broadcast_to(t, x.shape[:1])
        return denoiser.apply({"params": params}, x, times, encoded, method="predict_encoded")

    return _whole(mesh, likelihood(denoise, denoiser.process_of(params), pixels, keys))


def _fields(denoiser: Any, examples: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions among the fields of examples; texts that nothing has made numbers of are read here."""
    conditioner = denoiser.conditioner
    given = {name: np.asarray(examples[name]) for name in conditioner.conditions if name in examples}
    return {
        name: conditioner.read(name, values) if values.dtype.kind in "USO" else values
        for name, values in given.items()
    }


def _split(mesh, tree: Any) -> Any:
    return jax.lax.with_sharding_constraint(tree, partitioning.batch_sharding(mesh))


def _whole(mesh, values: Any) -> Any:
    return jax.lax.with_sharding_constraint(values, partitioning.replicated(mesh))
