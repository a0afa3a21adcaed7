"""Euclidean distances of all pairs of vectors: on the host, or split over devices.

Vectors are subtracted pair by pair, in float64, and not multiplied as matrices. So a copy is at distance exactly 0, and
``d(a, b)`` and ``d(b, a)`` are the same bits.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Float64

from jaxdiff.distributed import runtime

BLOCK = 1024
"""Rows of the second set that a device subtracts at once: fixed, so that rounding does not depend on its number."""

WITH_FLOAT64 = ("gpu", "cuda", "rocm")
"""Platforms whose devices are used. A TPU has no float64; on a CPU SciPy is faster."""


Measure = Callable[[Float[np.ndarray, "n d"]], Float64[np.ndarray, "n m"]]
"""From vectors to their distances to m fixed ones."""


def distances_to(references: Float[np.ndarray, "m d"]) -> Measure:
    """Euclidean distances to every reference: on the devices of this process if they suit, else on the host."""
    from scipy.spatial.distance import cdist

    devices = [device for device in _local() if device.platform in WITH_FLOAT64]
    return on_devices(references, devices) if devices else lambda vectors: cdist(vectors, references)


def on_devices(references: Float[np.ndarray, "m d"], devices: Sequence[Any]) -> Measure:
    """The same, with the references split over devices, once; rows that fill the last device are cut off again."""
    m, d = references.shape
    rows = -(-m // (len(devices) * BLOCK)) * BLOCK
    padded = np.zeros((len(devices) * rows, d))
    padded[:m] = references
    mesh, program = _program(tuple(devices))
    split, copied = (NamedSharding(mesh, spec) for spec in (PartitionSpec("rows"), PartitionSpec()))
    with jax.enable_x64(True):
        placed = jax.device_put(padded, split)

    def measure(vectors: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n m"]:
        with jax.enable_x64(True):
            found = program(placed, jax.device_put(np.asarray(vectors, np.float64), copied))
        return np.ascontiguousarray(np.asarray(found)[:m].T)

    return measure


@functools.cache
def _program(devices: tuple[Any, ...]) -> tuple[Mesh, Any]:
    """The mesh, and the compiled function from (b [m, d], a [n, d]) to distances [m, n]."""
    mesh = Mesh(np.array(devices), ("rows",))

    def of_device(b: jax.Array, a: jax.Array) -> jax.Array:
        blocks = b.reshape(-1, BLOCK, b.shape[1])

        def to(row: jax.Array) -> jax.Array:
            return jax.lax.map(lambda block: jnp.sqrt(jnp.sum((block - row[None]) ** 2, axis=1)), blocks)

        return jax.lax.map(to, a).reshape(len(a), -1).T

    rows, copied = PartitionSpec("rows"), PartitionSpec()
    return mesh, jax.jit(jax.shard_map(of_device, mesh=mesh, in_specs=(rows, copied), out_specs=rows))


def _local() -> list[Any]:
    runtime.devices()  # a readable error if the platform is absent
    return jax.local_devices()
