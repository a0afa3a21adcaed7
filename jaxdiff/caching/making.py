"""Making a cache: examples are read, encoded by frozen networks in batches, and written shard by shard."""

import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxdiff.caching import checks, key
from jaxdiff.caching.folder import Description, Folder
from jaxdiff.caching.records import Distinct, write
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.distributed.mesh import global_batch
from jaxdiff.errors import UserError, expect, one_of, positive
from jaxdiff.experiment import Experiment
from jaxdiff.runs import weights
from jaxdiff.runs.draft import locked
from jaxdiff.tasks import precomputed
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.typing import Params, dtype_of

DTYPES = ("float32", "float16")
SHARD = 1024
"""Examples of a shard, unless a number of shards is given."""

Inputs = tuple[dict[str, Distinct], tuple[int, ...]]
"""What `checks.transformed` returns for an example."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
      out: the folder.
      shards: number of files; as before, or one for each `SHARD` examples, if None.
      dtype: of stored floats, one of `DTYPES`.
      fields: those to encode; all that frozen networks read, if None.
    """

    out: str
    shards: int | None = None
    dtype: str = "float32"
    fields: tuple[str, ...] | None = None

    def __post_init__(self):
        positive(self, "shards")
        one_of(self, "dtype", DTYPES)


def make(experiment: Experiment, request: Request, on_shard: Callable[[int, int], None]) -> Description:
    """Make a cache, or complete one that was interrupted; a complete one stays as it is.

    Args:
      on_shard: called with the number of complete shards, and that of all.

    Raises:
      UserError: there is nothing to encode; the folder holds a cache that other weights, another config or other
        examples have made (the error names them); or results do not fit `dtype`.
    """
    expect(jax.process_count() == 1, "JAX_NUM_PROCESSES", jax.process_count(), "one process", "use one host")
    folder, pipeline, mesh = Folder(request.out, "--out"), experiment.data, experiment.mesh.make()
    expected, fix = "no buckets, since a cache holds images of one shape", "leave them out"
    expect(pipeline.buckets is None, "config.data.buckets", "Buckets", expected, fix)
    experiment.check_devices(mesh.devices.size)
    fields = _fields(experiment, request)
    frozen, hashes = _networks(experiment, fields, mesh)
    found = key.key_of(experiment, fields, hashes)
    encoder = Encoder(key.task_of(experiment), frozen, mesh, experiment.batch_size, request.dtype)
    folder.root.mkdir(parents=True, exist_ok=True)
    with locked(folder.root) as held:
        fix = "wait until it ends, or give another folder"
        expect(held, "--out", request.out, "a folder that no other process writes", fix, "a locked one")
        description = _begin(pipeline, request, fields, found, folder)
        _write_missing(pipeline, encoder, folder, description, on_shard)
    return description


def _fields(experiment: Experiment, request: Request) -> tuple[str, ...]:
    """The fields to encode, of examples that fit the task."""
    task, fix = key.task_of(experiment), "train without a cache"
    task.check(experiment.data.example(), experiment.data.num_classes())
    known, codec = precomputed.fields(task), type(task.codec).__name__
    expected = "a task with a frozen network, such as the codec Latent or a text encoder"
    expect(bool(known), "config.task.codec", codec, expected, fix)
    expected, fix = f"fields that a frozen network reads, {', '.join(known)}", "leave it out"
    for name in request.fields or ():
        expect(name in known, "--fields", name, expected, fix)
    return tuple(name for name in known if request.fields is None or name in request.fields)


def _networks(
    experiment: Experiment, fields: tuple[str, ...], mesh: jax.sharding.Mesh
) -> tuple[dict[str, dict[str, Params]], dict[str, str]]:
    """The parameters of each field's networks on `mesh`, and the SHA-256 of each network, by name."""
    task = key.task_of(experiment)
    origins = {field: precomputed.networks(task, field) for field in fields}
    placed, hashes = {}, {}
    for name, origin in {name: each for own in origins.values() for name, each in own.items()}.items():
        read = origin.read()
        placed[name] = weights.placed(read, mesh, dtype_of(origin))
        hashes[name] = weights.fingerprint(nn.meta.unbox(read))
    frozen = {field: {name: placed[name] for name in own} for field, own in origins.items()}
    for field, own in frozen.items():
        precomputed.check(task, field, own)
    return frozen, hashes


def _begin(
    pipeline: Pipeline, request: Request, fields: tuple[str, ...], found: key.Key, folder: Folder
) -> Description:
    """The description of a new cache, or of the one that is there, which must be the requested one.

    Until its first shard a cache binds nothing.
    """
    stored = folder.begun()
    length = stored.length if stored else len(pipeline.source.open())
    shards = request.shards or (stored.shards if stored else -(-length // SHARD))
    wanted = Description(found, fields, request.dtype, length, min(length, shards))
    if stored is None:
        folder.begin(wanted)
        return wanted
    fix = f"give another --out, or remove {request.out}"
    for name in ("fields", "dtype", "shards"):
        ours, theirs = getattr(wanted, name), getattr(stored, name)
        expect(ours == theirs, f"--{name}", ours, f"{theirs!r} as the cache in {request.out} has", fix)
    checks.check(folder, stored, found, pipeline, fix)
    return stored


@dataclasses.dataclass(frozen=True)
class Encoder:
    """The networks of all encoded fields, compiled for batches of one size.

    Attributes:
      frozen: for each field the parameters of its networks by name, on `mesh`.
      batch_size: values of a batch; the last of them is repeated where there are fewer.
      dtype: of the floats of results.
    """

    task: DenoisingTask
    frozen: Mapping[str, Mapping[str, Params]]
    mesh: jax.sharding.Mesh
    batch_size: int
    dtype: str

    def __call__(self, examples: Sequence[Mapping[str, Distinct]]) -> list[dict[str, Any]]:
        """What networks make of the distinct values of examples: by field, trees of arrays [values, ...]."""
        found: list[dict[str, Any]] = [{} for _ in examples]
        for field in self.frozen:
            encoded = self._encoded(field, _stacked(field, examples))
            ends = list(itertools.accumulate(len(each[field].values) for each in examples))
            for own, first, end in zip(found, (0, *ends), ends, strict=False):
                own[field] = jax.tree.map(lambda leaf, rows=slice(first, end): leaf[rows], encoded)
        return found

    def _encoded(self, field: str, values: np.ndarray) -> Any:
        """The results for values [n, ...] of a field."""
        frozen, size, run = self.frozen[field], self.batch_size, _compiled(self.task, field)
        padded = np.concatenate([values, np.repeat(values[-1:], -len(values) % size, axis=0)])
        batches = [padded[first : first + size] for first in range(0, len(padded), size)]
        found = [run(frozen, global_batch(batch, self.mesh)) for batch in batches]
        whole = jax.tree.map(lambda *parts: np.concatenate(list(map(np.asarray, parts))), *found)
        return jax.tree.map(lambda leaf: stored(field, leaf[: len(values)], self.dtype), whole)


@functools.cache
def _compiled(task: DenoisingTask, field: str) -> Any:
    return jax.jit(lambda frozen, values: precomputed.precompute(task, field, frozen, values))


def _stacked(field: str, examples: Sequence[Mapping[str, Distinct]]) -> np.ndarray:
    """The distinct values of a field of all examples, which must have one shape."""
    first = examples[0][field].values[0]
    for each in examples:
        for value in each[field].values:
            if (value.shape, value.dtype) != (first.shape, first.dtype):
                kind, got = (f"{array.dtype}{list(array.shape)}" for array in (first, value))
                raise UserError(
                    f"index={each['index'].values[0]}: expected {field} of {kind} as before, got {got}. "
                    "Fix: use a data set of one image size, or a transform that crops or resizes"
                )
    return np.stack([value for each in examples for value in each[field].values])


def stored(field: str, values: np.ndarray, dtype: str) -> np.ndarray:
    """Floats in the type that is stored; other values stay.

    Raises:
      UserError: a value is NaN or infinite, or becomes so. Minus infinity, the logarithm of no variance, stays.
    """
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return values
    floats = values.astype(np.float32)
    with np.errstate(over="ignore"):
        found = floats.astype(dtype)
    if not np.all(np.isfinite(found) | np.isneginf(floats)):
        fix = "look at the weights" if dtype == "float32" else "use --dtype=float32"
        raise UserError(f"{field}: expected finite numbers in {dtype}, got NaN or infinity. Fix: {fix}")
    return found


def _write_missing(
    pipeline: Pipeline,
    encoder: Encoder,
    folder: Folder,
    description: Description,
    on_shard: Callable[[int, int], None],
) -> None:
    files = folder.shards(description)
    missing = [number for number, file in enumerate(files) if not file.exists()]
    done = len(files) - len(missing)
    for number in missing:
        with folder.writer(files[number]) as writer:
            for record in _records(pipeline, encoder, description.rows(number)):
                writer.write(record)
        done += 1
        on_shard(done, len(files))


def _records(pipeline: Pipeline, encoder: Encoder, rows: range) -> Iterator[bytes]:
    """The records of some examples, a batch in memory at a time, and the next one being read.

    The batches of a shard begin with it, so that a shard does not depend on those before.
    """
    for batch in _batches(pipeline, rows, encoder.batch_size):
        inputs = [each for each, _ in batch]
        for (each, counts), encoded in zip(batch, encoder(inputs), strict=True):
            yield write(each, encoded, counts)


def _batches(pipeline: Pipeline, rows: range, size: int) -> Iterator[list[Inputs]]:
    examples: Any = pipeline.source.open()
    read = functools.partial(checks.transformed, pipeline, examples)
    with concurrent.futures.ThreadPoolExecutor(max(1, pipeline.threads)) as pool:
        ahead: list[Any] = []
        for first in range(rows.start, rows.stop, size):
            current = ahead or [pool.submit(read, row) for row in rows[first - rows.start :][:size]]
            ahead = [pool.submit(read, row) for row in rows[first - rows.start + size :][:size]]
            yield [future.result() for future in current]
