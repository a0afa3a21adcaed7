"""Published weights of any supported file format as named arrays, read without running code of the file.

>>> checkpoint = read_tensors("network-snapshot.pkl")
>>> checkpoint.tree, checkpoint.averaged
('ema', True)
>>> checkpoint.tensors["model.map_layer0.weight"].shape
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxdiff.interop import folders, trees
from jaxdiff.interop.description import describe
from jaxdiff.interop.files import AGAIN, Unreadable, mapped, reading
from jaxdiff.interop.safetensors_files import is_safetensors, read_safetensors
from jaxdiff.interop.torch_files import is_legacy, read_legacy, read_pickle, read_zip


class Tensors(Mapping[str, np.ndarray]):
    """Named arrays of a file, in their stored dtypes; each is read on access."""

    def __init__(self, path: pathlib.Path, readers: Mapping[str, Callable[[], np.ndarray]]):
        self._path, self._readers = path, readers

    def __getitem__(self, name: str) -> np.ndarray:
        reader = self._readers[name]
        with reading(self._path):
            return reader()

    def renamed(self, names: Mapping[str, str]) -> "Tensors":
        """The tensors of some names under other ones: {new name: name here}."""
        return Tensors(self._path, {ours: self._readers[theirs] for ours, theirs in names.items()})

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights read from a file.

    Attributes:
        tensors: arrays by the names in the file.
        metadata: other content of the file as plain data. For an EDM snapshot, ``metadata["ema"]["init_kwargs"]`` are
            the constructor arguments of the network; for a diffusers folder, "config" is its config.json.
        tree: name of this set of tensors in the file: "ema", "state_dict", "model_ema"; "" for the only set.
        averaged: whether the file marks the set as an average over training (EMA). Files with a single averaged set
            often do not mark it.
    """

    tensors: Tensors
    metadata: dict[str, Any]
    tree: str
    averaged: bool


Readers = Mapping[str, Callable[[], np.ndarray]]

_PICKLE = 0x80
"""First byte of every pickle since Python 2.3."""


def read_tensors(path: str | os.PathLike, ema: bool | None = None) -> Checkpoint:
    """Read a file or folder of weights. The format follows from the content, not from the name.

    Formats: safetensors files and their indices; folders of diffusers; files of ``torch.save``, current and before
    PyTorch 1.6; pickled snapshots of EDM and EDM2. Files are memory-mapped. Apart from the tensors that are read, no
    file takes more than 500 MiB of memory.

    Args:
        path: a file, or the folder of a diffusers model or pipeline (its ``unet``).
        ema: weights to read from a file with two sets: averaged (True), last trained (False), or the averaged ones if
            there are any (None).

    Raises:
        UserError: the file is damaged, unsupported or without the weights that `ema` selects. Reading a tensor raises
            it as well, if its bytes are damaged.
    """
    path = pathlib.Path(path)
    with reading(path):
        folder = folders.model_folder(path, ema) if path.is_dir() else path
        file = folders.weights_file(folder, ema) if path.is_dir() else path
        content, metadata = _content(file, ema)
        sets = _separated(content)
        if path.is_dir():
            metadata |= folders.settings(folder, path)
        if trees.is_averaged(folder.name) and folder != path:
            sets = {folder.name: sets[trees.choose(sets, None)]}
        tree = trees.choose(sets, ema)
        return Checkpoint(Tensors(file, sets[tree]), metadata, tree, trees.is_averaged(tree))


def read_all_tensors(path: str | os.PathLike) -> Tensors:
    """The tensors of all sets in a file, such as an IP-Adapter's.

    Names begin with that of their set: ``image_proj.proj.weight``, whether the file has sets or only such names.
    """
    path = pathlib.Path(path)
    with reading(path):
        found, _ = _content(path, None)
    return Tensors(
        path,
        {
            ".".join((*filter(None, position.split("/")), name)): reader
            for position, readers in found.items()
            for name, reader in readers.items()
        },
    )


def _content(path: pathlib.Path, ema: bool | None) -> tuple[dict[str, Readers], dict[str, Any]]:
    """The sets of tensors in a file by their position in it, and its metadata."""
    data = mapped(path)
    start = bytes(data[:64])
    if is_safetensors(start):
        readers, texts = read_safetensors(path)
        return {"": readers}, dict(texts)
    if start.lstrip()[:1] == b"{":
        return {"": dict(_of_shards(path))}, {}
    if start[:2] == b"PK":
        content = read_zip(path, data)
    elif is_legacy(start):
        content = read_legacy(data)
    elif start[0] == _PICKLE:
        content = read_pickle(data)
    else:
        raise Unreadable(f"expected a file of weights, got {_what(start)}", AGAIN)
    if ema is not False and trees.has_nameless_averages(content):
        raise Unreadable(
            "expected names for its averaged weights, got a list without names (shadow_params)",
            "choose the trained ones (--weights trained); or copy the averages into the model in PyTorch, and save its "
            "state dict",
        )
    found: dict[str, Readers] = {
        position: {name: tensor.array for name, tensor in tree.items()}
        for position, tree in trees.trees_in(content).items()
    }
    return found, describe(content)


def _of_shards(index: pathlib.Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    for name, keys in folders.shards(index).items():
        shard = index.with_name(name)
        with reading(shard):
            if bytes(mapped(shard)[:1]) == b"{":
                raise Unreadable("expected a file of weights in the index, got another index")
            found, _ = _content(shard, None)
            readers = found.get("", {})
            if missing := [key for key in keys if key not in readers]:
                raise Unreadable(
                    f"expected {missing[0][:200]!r} in it, as {index.name} lists, got no such tensor"
                )
        yield from ((key, readers[key]) for key in keys)


def _separated(found: dict[str, Readers]) -> dict[str, Readers]:
    """The same sets, with those that differ only by a prefix of their names separated."""
    return {
        "/".join(part for part in (position, prefix) if part): {
            ours: readers[theirs] for ours, theirs in names.items()
        }
        for position, readers in found.items()
        for prefix, names in trees.split(readers).items()
    }


def _what(start: bytes) -> str:
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer to the file"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, probably an error page of the server"
    return f"a file that starts with {start[:8]!r}"
