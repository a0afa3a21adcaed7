"""Published weights, from whatever file they come in, as named arrays. No code of a file is run.

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
    """Named arrays of a file, each read when it is asked for. They keep the dtype that they are stored in."""

    def __init__(self, path: pathlib.Path, readers: Mapping[str, Callable[[], np.ndarray]]):
        self._path, self._readers = path, readers

    def __getitem__(self, name: str) -> np.ndarray:
        reader = self._readers[name]
        with reading(self._path):
            return reader()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        tensors: by the names that their authors gave them.
        metadata: what else there is, as plain data. Of an EDM snapshot, ``metadata["ema"]["init_kwargs"]`` are the
            arguments that made the network; of a diffusers folder, "config" is its config.json.
        tree: which of the file's sets of tensors this is: "ema", "state_dict", "model_ema"; "" if it has but one.
        averaged: whether the file says that the set is averaged over training. A file may be averaged as a whole
            without saying so.
    """

    tensors: Tensors
    metadata: dict[str, Any]
    tree: str
    averaged: bool


Readers = Mapping[str, Callable[[], np.ndarray]]

_PICKLE = 0x80
"""With this byte begins every pickle since Python 2.3."""


def read_tensors(path: str | os.PathLike, ema: bool | None = None) -> Checkpoint:
    """Read a file or folder of weights. The format is known by content, whatever the name.

    Safetensors files and their indices; folders of diffusers; what ``torch.save`` writes, today and before PyTorch
    1.6; pickled snapshots of EDM and EDM2. A file is mapped, not loaded. Beside the tensors that are asked for, no file
    takes more than 500 MiB of memory, whatever it claims.

    Args:
        path: a file, or the folder of a diffusers model or pipeline (its ``unet``).
        ema: which weights to take where there are two sets: averaged (True), as last trained (False), or the averaged
            ones if there are any (None). True and False are errors where there are no such.

    Raises:
        UserError: saying what is wrong with the file. Also when a tensor is looked up, if its bytes are damaged.
    """
    path = pathlib.Path(path)
    with reading(path):
        folder = folders.model_folder(path, ema) if path.is_dir() else path
        file = folders.weights_file(folder, ema) if path.is_dir() else path
        content, metadata = _content(file, ema)
        sets = _told_apart(content)
        if path.is_dir():
            metadata |= folders.settings(folder, path)
        if trees.is_averaged(folder.name) and folder != path:
            sets = {folder.name: sets[trees.choose(sets, None)]}
        tree = trees.choose(sets, ema)
        return Checkpoint(Tensors(file, sets[tree]), metadata, tree, trees.is_averaged(tree))


def _content(path: pathlib.Path, ema: bool | None) -> tuple[dict[str, Readers], dict[str, Any]]:
    """The sets of tensors in a file by where they stand, and what else it says."""
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
        raise Unreadable(f"not a file of weights: {_what(start)}", AGAIN)
    if ema is not False and trees.has_nameless_averages(content):
        raise Unreadable(
            "its averaged weights are a list without names (shadow_params)",
            "ema=False takes the others; or copy the averages into the model in PyTorch, and save its state dict",
        )
    found: dict[str, Readers] = {
        place: {name: tensor.array for name, tensor in tree.items()}
        for place, tree in trees.trees_in(content).items()
    }
    return found, describe(content)


def _of_shards(index: pathlib.Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    for name, keys in folders.shards(index).items():
        shard = index.with_name(name)
        with reading(shard):
            if bytes(mapped(shard)[:1]) == b"{":
                raise Unreadable("an index within an index")
            found, _ = _content(shard, None)
            readers = found.get("", {})
            if missing := [key for key in keys if key not in readers]:
                raise Unreadable(f"it lacks {missing[0][:200]!r}, which {index.name} says it has")
        yield from ((key, readers[key]) for key in keys)


def _told_apart(found: dict[str, Readers]) -> dict[str, Readers]:
    """The same, with sets that stand in one list of names told apart."""
    return {
        "/".join(part for part in (place, prefix) if part): {
            ours: readers[theirs] for ours, theirs in names.items()
        }
        for place, readers in found.items()
        for prefix, names in trees.split(readers).items()
    }


def _what(start: bytes) -> str:
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, in the place of the file"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, probably an answer of the server instead of the file"
    return f"it begins with {start[:8]!r}"
