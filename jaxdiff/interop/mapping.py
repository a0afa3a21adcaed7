"""Parameter mapping: another codebase's named tensors to our parameters and back, by a list of pairs of names.

Each codebase (a "peer") has a function that yields an `Entry` for each of our arrays: its path, the peer's keys and the
layout of the values. `to_params` and `to_tensors` are exact inverses.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdiff.errors import UserError
from jaxdiff.interop.files import release
from jaxdiff.interop.pending import Pending
from jaxdiff.typing import Params

MOST_ROWS = 40
"""Of a table of tensors that do not fit."""

FLOATS = ("float64", "float32", "float16", "bfloat16")
"""Types of parameters. Smaller ones are quantised: their files hold scales besides."""

WRONG_CONFIG = "give the config of the network in the file"
WRONG_FILES = "give the files of one model, complete and as it was published"

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of one array in a peer's file.

    Attributes:
      load: our array, of a given shape, from the peer's tensors.
      save: the peer's tensors from our array.
    """

    load: Callable[[Sequence[np.ndarray], tuple[int, ...]], np.ndarray]
    save: Callable[[np.ndarray], list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """Our array at `path` ("a/b/kernel") holds the values of the peer's tensors under `keys`."""

    path: str
    keys: tuple[str, ...]
    layout: Layout


def simple(load: Callable[[np.ndarray], np.ndarray], save: Callable[[np.ndarray], np.ndarray]) -> Layout:
    """A layout of one tensor."""
    return Layout(lambda tensors, shape: load(tensors[0]), lambda array: [save(array)])


SAME = simple(lambda x: x, lambda x: x)
DENSE = simple(lambda x: x.T, lambda x: x.T)
"""[out, in] -> [in, out]"""
CONV = simple(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
"""[out, in, height, width] -> [height, width, in, out]"""


def row(axes: int) -> Layout:
    """[1, ..., 1, *shape] with `axes` axes of length 1 -> [*shape]"""
    return simple(lambda x: x.reshape(x.shape[axes:]), lambda x: x.reshape((1,) * axes + x.shape))


def heads(order: str, axes: int = 0) -> Layout:
    """Queries, keys and values in one tensor whose rows run over them ("3"), heads ("H") and their channels ("C").

    Ours are [in, 3, heads, channels], or without the first axis for a bias.

    Args:
      order: "3HC" (ADM's new attention order), "H3C" (its legacy order) or "HC3" (EDM).
      axes: number of further axes of length 1 in the weight: 2 if it is stored as a convolution over pixels.
    """
    forth = [order.index(axis) for axis in "3HC"]
    back = ["3HC".index(axis) for axis in order]

    def load(tensors: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        sizes = dict(zip("3HC", shape[-3:], strict=True))
        rows = tensors[0].reshape(*(sizes[axis] for axis in order), *shape[:-3])
        rows = rows.transpose(*forth, *range(3, rows.ndim))
        return np.moveaxis(rows, -1, 0) if len(shape) == 4 else rows

    def save(array: np.ndarray) -> list[np.ndarray]:
        rows = np.moveaxis(array, 0, -1) if array.ndim == 4 else array
        rows = rows.transpose(*back, *range(3, rows.ndim))
        tail = (array.shape[0], *(1,) * axes) if array.ndim == 4 else ()
        return [rows.reshape(-1, *tail)]

    return Layout(load, save)


def separate_heads(axes: int = 0) -> Layout:
    """Queries, keys and values each in a tensor [heads channels, in] (a bias without the last axis).

    Args:
      axes: number of further axes of length 1 in the weight: 2 if it is stored as a convolution over pixels.
    """

    def load(tensors: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        rows = (tensor.reshape(tensor.shape[: len(shape) - 2]) for tensor in tensors)
        stacked = np.stack([tensor.T for tensor in rows], axis=-2)  # [in, 3, heads channels]
        return stacked.reshape(shape)

    def save(array: np.ndarray) -> list[np.ndarray]:
        flat = array.reshape(*array.shape[:-2], -1)
        ones = (1,) * (axes if array.ndim == 4 else 0)
        rows = (flat[..., i, :].T for i in range(array.shape[-3]))
        return [tensor.reshape(*tensor.shape, *ones) for tensor in rows]

    return Layout(load, save)


def from_heads(axes: int = 0) -> Layout:
    """[out, heads channels], followed by `axes` axes of length 1 -> [heads, channels, out]."""

    def load(tensors: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        return tensors[0].reshape(shape[-1], -1).T.reshape(shape)

    def save(array: np.ndarray) -> list[np.ndarray]:
        return [array.reshape(-1, array.shape[-1]).T.reshape(array.shape[-1], -1, *(1,) * axes)]

    return Layout(load, save)


def conv(ours: str, theirs: str) -> Iterator[Entry]:
    """A convolution."""
    yield Entry(f"{ours}/kernel", (f"{theirs}.weight",), CONV)
    yield Entry(f"{ours}/bias", (f"{theirs}.bias",), SAME)


def dense(ours: str, theirs: str) -> Iterator[Entry]:
    """A linear layer."""
    yield Entry(f"{ours}/kernel", (f"{theirs}.weight",), DENSE)
    yield Entry(f"{ours}/bias", (f"{theirs}.bias",), SAME)


def norm(ours: str, theirs: str) -> Iterator[Entry]:
    """A group or layer norm."""
    yield Entry(f"{ours}/scale", (f"{theirs}.weight",), SAME)
    yield Entry(f"{ours}/bias", (f"{theirs}.bias",), SAME)


def to_params(
    entries: Iterable[Entry], tensors: Tensors, abstract: Params, ignored: Sequence[str] = ()
) -> Params:
    """Our parameters, in the shapes and types of `abstract`, from a peer's tensors.

    Args:
      entries: the mapping; entries of arrays that `abstract` does not have are skipped.
      tensors: arrays by the peer's names.
      abstract: the tree of our parameters; only shapes and types are read.
      ignored: last parts of the peer's names that are buffers rather than parameters.

    Raises:
      UserError: lists every tensor that is missing, unexpected, or of another shape; or that is not finite.
    """
    ours = flatten_dict(abstract, sep="/")
    pending = to_pending(entries, tensors, abstract, ignored, WRONG_CONFIG)
    with np.errstate(over="ignore"):  # a value beyond our type becomes infinite, which is reported
        arrays = {
            path: np.asarray(each.read(), ours[path].dtype, order="C") for path, each in pending.items()
        }
    check_finite({pending[path].origin: array for path, array in arrays.items()})
    return unflatten_dict(arrays, sep="/")


def to_pending(
    entries: Iterable[Entry],
    tensors: Tensors,
    abstract: Params,
    ignored: Sequence[str] = (),
    fix: str = WRONG_FILES,
) -> dict[str, Pending]:
    """Our parameters by their paths, in the types of the peer's tensors, not yet read.

    Args:
      entries, tensors, abstract, ignored: as for `to_params`.
      fix: what the user can do where tensors do not fit.

    Raises:
      UserError: lists every tensor that is missing, unexpected, or of another shape; or names those of integers or of
        8 bits.
    """
    ours = flatten_dict(abstract, sep="/")
    wanted = {entry.path: entry for entry in entries if entry.path in ours}
    _check_shapes(wanted, tensors, ours, ignored, fix)
    _check_dtypes({key: tensors[key].dtype.name for entry in wanted.values() for key in entry.keys})
    return {path: _pending(entry, tensors, tuple(ours[path].shape)) for path, entry in wanted.items()}


def _pending(entry: Entry, tensors: Tensors, shape: tuple[int, ...]) -> Pending:
    dtype = np.result_type(*(tensors[key].dtype for key in entry.keys))

    def read() -> np.ndarray:
        arrays = [np.asarray(tensors[key]) for key in entry.keys]
        found = np.array(entry.layout.load(arrays, shape), dtype, order="C")
        for array in arrays:
            release(array)
        return found

    return Pending(shape, dtype, read, " ".join(entry.keys))


def _check_dtypes(dtypes: Mapping[str, str]) -> None:
    """Raise `UserError` about tensors whose values are no numbers of 16 bits or more."""
    small = [name for name, dtype in dtypes.items() if dtype not in FLOATS]
    if small:
        more = f" and {len(small) - 1} more tensors" if len(small) > 1 else ""
        raise UserError(
            f"--from: expected tensors of {', '.join(FLOATS)}, got {dtypes[small[0]]} in {small[0]}{more}. "
            "Fix: give a file of the model that is not quantised, such as one of float16"
        )


def _check_shapes(
    wanted: Mapping[str, Entry],
    tensors: Tensors,
    ours: Mapping[str, Any],
    ignored: Sequence[str],
    fix: str,
) -> None:
    """Raise `UserError` unless the peer's tensors are those of our arrays."""
    problems: list[tuple] = [
        ("not in the mapping", path, ours[path].shape, "-") for path in ours if path not in wanted
    ]
    found = set()
    for path, entry in wanted.items():
        shape = tuple(ours[path].shape)
        expected = [x.shape for x in entry.layout.save(np.broadcast_to(np.zeros((), np.float32), shape))]
        for key, need in zip(entry.keys, expected, strict=True):
            if key not in tensors:
                problems.append(("missing", key, need, "-"))
            elif tuple(tensors[key].shape) != tuple(need):
                problems.append(("other shape", key, need, tuple(tensors[key].shape)))
        found.update(entry.keys)
    extra = [key for key in tensors if key not in found and key.rpartition(".")[2] not in ignored]
    problems += [("not read", key, "-", tuple(tensors[key].shape)) for key in extra]
    if problems:
        raise UserError(
            f"--from: expected the tensors of the config's network, got {len(problems)} that differ; nothing was "
            f"loaded. Fix: {fix}",
            _table(problems),
        )


def check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise `UserError` unless all values are finite; `arrays` by the names of their tensors."""
    counts = {name: np.count_nonzero(~np.isfinite(array)) for name, array in arrays.items()}
    broken = [f"{count:,} of {name}" for name, count in counts.items() if count]
    if broken:
        more = f" and {len(broken) - 5} more tensors" if len(broken) > 5 else ""
        raise UserError(
            f"weights: expected finite numbers, got values that are NaN or infinite: {', '.join(broken[:5])}{more}. "
            "Fix: get the file again, or take an earlier checkpoint of its training"
        )


def to_tensors(entries: Iterable[Entry], params: Params) -> dict[str, np.ndarray]:
    """A peer's tensors from our parameters; the inverse of `to_params`."""
    ours = flatten_dict(params, sep="/")
    found: dict[str, np.ndarray] = {}
    done = set()
    for entry in entries:
        if entry.path in ours:
            arrays = entry.layout.save(np.asarray(ours[entry.path]))
            found.update((key, np.asarray(x, order="C")) for key, x in zip(entry.keys, arrays, strict=True))
            done.add(entry.path)
    _check_all_written(ours, done)
    return found


def to_pending_tensors(entries: Iterable[Entry], arrays: Mapping[str, Any]) -> dict[str, Pending]:
    """A peer's tensors, not yet read, from our arrays by their paths, read or pending; the inverse of `to_pending`."""
    found: dict[str, Pending] = {}
    done = set()
    for entry in entries:
        if entry.path in arrays:
            found |= _pending_tensors(entry, arrays)
            done.add(entry.path)
    _check_all_written(arrays, done)
    return found


def _pending_tensors(entry: Entry, arrays: Mapping[str, Any]) -> dict[str, Pending]:
    array = arrays[entry.path]
    shapes = [x.shape for x in entry.layout.save(np.broadcast_to(np.zeros((), array.dtype), array.shape))]

    def reader(number: int) -> Callable[[], np.ndarray]:
        return lambda: np.asarray(entry.layout.save(np.asarray(arrays[entry.path]))[number], order="C")

    return {
        key: Pending(shape, array.dtype, reader(number), entry.path)
        for number, (key, shape) in enumerate(zip(entry.keys, shapes, strict=True))
    }


def _check_all_written(ours: Iterable[str], done: set[str]) -> None:
    """Raise `UserError` where the mapping lacks some of our arrays."""
    left = sorted(set(ours) - done)
    if left:
        raise UserError(
            f"config.task.denoiser: expected parameters that the peer's layout has, got {', '.join(left[:8])}"
            f"{' ...' if len(left) > 8 else ''}. Fix: choose a layout that has this architecture"
        )


def _table(problems: list[tuple]) -> list[str]:
    rows = [
        f"{what:<18} {name:<60} expected {need!s:<20} found {found}"
        for what, name, need, found in problems[:MOST_ROWS]
    ]
    left = len(problems) - len(rows)
    return [*rows, f"... and {left} more"] if left else rows
