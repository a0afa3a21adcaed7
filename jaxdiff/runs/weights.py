"""Weights of networks that are used and not trained: their origins, their hashes, and their place on the mesh."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from etils import epath
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from jaxdiff import config as configs
from jaxdiff.codecs import image_embedding
from jaxdiff.data.text_files import read_json, read_text
from jaxdiff.distributed import partitioning
from jaxdiff.distributed.first_process import in_first
from jaxdiff.errors import UserError, expect, one_of
from jaxdiff.interop.files import release
from jaxdiff.interop.tensors import read_tensors
from jaxdiff.runs.stages import read_model_config
from jaxdiff.runs.workdir import CONFIG_FILE, FROZEN
from jaxdiff.tasks.protocols import Sampleable
from jaxdiff.trees import HALF, dtype_in, some_of
from jaxdiff.typing import Params, Weights, dtype_of

RECORD = "frozen.json"
"""The file in a run's folder that names the origin and the hash of every network that is not trained."""

UNET, TEXT, AUTOENCODER = (f"{FROZEN}/{name}.safetensors" for name in ("unet", "text_encoder", "autoencoder"))
"""Files of parameters in the run's folder, named by our paths and in the precision of the published ones."""


@dataclasses.dataclass(frozen=True)
class RunWeights:
    """The parameters of another run of jaxdiff, or of one of its modules.

    Attributes:
      workdir: the other run's folder.
      step: of its checkpoint; the latest if None. Give it where the other run may still be trained.
      ema: take the EMA rather than the parameters after the last step.
      module: path of the module whose parameters are used, such as ``network``; all if empty.
      packages: packages, in addition to jaxdiff, whose classes the other run's config may build.
      dtype: as in `FileWeights`.
    """

    places: ClassVar[tuple[str, ...]] = ("workdir",)

    workdir: str
    step: int | None = None
    ema: bool = True
    module: str = ""
    packages: tuple[str, ...] = ()
    dtype: str = "float32"

    def __post_init__(self):
        one_of(self, "dtype", ("float32", *HALF))

    def check(self, field: str) -> None:
        """Raise `UserError` about `field` unless the folder has a run."""
        there = (epath.Path(self.workdir).expanduser() / CONFIG_FILE).exists()
        fix = "train that run first, or give its folder"
        expect(
            there,
            f"{field}.workdir",
            self.workdir,
            "the folder of a run, whose weights are used",
            fix,
            "none",
        )

    def read(self) -> Params:
        from jaxdiff.runs.restore import (
            restore_params,  # imports Orbax, which a config that names this class need not
        )

        self.check("weights")
        other: Any = configs.build(read_model_config(self.workdir), packages=("jaxdiff", *self.packages))
        mesh = dataclasses.replace(other.mesh, data=1, fsdp=1, tensor=1).make(jax.local_devices()[:1])
        field = "ema" if self.ema else "params"
        params = restore_params(other, self.workdir, mesh, self.step, field, flag="workdir")
        if isinstance(other.task, Sampleable):
            params = other.task.full_params(params, load(other.task.frozen, mesh, self.workdir))
        return _module(jax.tree.map(np.asarray, params), self.module)

    def describe(self) -> str:
        step = "latest step" if self.step is None else f"step {self.step}"
        return f"{self.workdir} ({step}, {'EMA' if self.ema else 'parameters'}) {self.module}".rstrip()


@dataclasses.dataclass(frozen=True)
class FileWeights:
    """The parameters in a file of tensors (.safetensors, or PyTorch's) named by our own paths, ``block_0/conv/kernel``.

    Attributes:
      path: of the file. No code in it is run.
      module: path of the module whose parameters are used; all if empty.
      dtype: the type in which the device holds arrays with two axes or more, whatever the file has: "float32", or
        "bfloat16" or "float16" for half the memory. Layers compute in their own `dtype` either way. A file in float16
        loses nothing in "float16".
    """

    places: ClassVar[tuple[str, ...]] = ("path",)

    path: str
    module: str = ""
    dtype: str = "float32"

    def __post_init__(self):
        one_of(self, "dtype", ("float32", *HALF))

    def read(self) -> Params:
        return _module(unflatten_dict(self.arrays(), sep="/"), self.module)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the module by their paths in the whole file; all of them if it has no such module."""
        tensors = read_tensors(self.path, None).tensors
        paths = {name.replace(".", "/"): name for name in tensors}
        own = {path: name for path, name in paths.items() if path.startswith(f"{self.module}/")}
        return {path: tensors[name] for path, name in (own or paths).items()}

    def describe(self) -> str:
        return f"{self.path} {self.module}".rstrip()


def load(
    weights: Mapping[str, Weights],
    mesh: jax.sharding.Mesh,
    workdir: epath.PathLike | None = None,
    record: bool = False,
) -> dict[str, Params]:
    """The networks' parameters on `mesh`, each sharded by the names of its axes or by its size.

    Args:
      weights: origins by name, as in `Task.frozen`.
      workdir: the run's folder, whose record of origins and hashes is compared if there is one.
      record: write the record rather than compare it.

    Raises:
      UserError: an origin cannot be read, or its parameters are not the recorded ones.
    """
    read = {name: origin.read() for name, origin in weights.items()}
    if workdir is not None and weights:
        file = epath.Path(workdir) / RECORD
        if record:
            in_first(lambda: write_record(weights, read, file))
        else:
            _compare(weights, read, file)
    return {name: placed(tree, mesh, dtype_of(weights[name])) for name, tree in read.items()}


def fingerprint(tree: Params) -> str:
    """SHA-256 over the paths, types, shapes and bytes of all arrays."""
    digest = hashlib.sha256()
    for path, leaf in sorted(jax.tree.leaves_with_path(tree), key=lambda pair: jax.tree_util.keystr(pair[0])):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
        release(array)
    return digest.hexdigest()


def digest_on_mesh(params: Params) -> str:
    """SHA-256 of parameters on a mesh, as ``sha256:`` and 16 digits. Arrays split over processes are gathered first."""
    return f"sha256:{fingerprint(jax.tree.map(_whole, nn.meta.unbox(params)))[:16]}"


def _whole(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(leaf, tiled=True)


def write_record(weights: Mapping[str, Weights], read: Mapping[str, Params], file: epath.Path) -> None:
    """Write the origins of networks, and the hashes of the parameters read from there, to `file`."""
    found = {
        name: {"from": weights[name].describe(), "sha256": fingerprint(nn.meta.unbox(tree))}
        for name, tree in read.items()
    }
    partial = file.parent / f".{file.name}.partial"
    partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.replace(file)


def _compare(weights: Mapping[str, Weights], read: Mapping[str, Params], file: epath.Path) -> None:
    """Raise `UserError` where the hash of a network differs from that in `file`, if there is such a file."""
    if not file.exists():
        return
    known = read_record(file)
    for name, tree in read.items():
        digest, stored = fingerprint(nn.meta.unbox(tree)), known.get(name)
        expect(
            stored == digest,
            f"config.task.frozen.{name}",
            weights[name].describe(),
            f"the weights that the run started with (sha256 {str(stored)[:16]})",
            "restore these weights, or start a new run in another --workdir",
            f"sha256 {digest[:16]}",
        )


def read_record(file: epath.Path) -> Mapping[str, str]:
    """The hashes in a record, by the networks' names."""
    where, fix = f"--workdir={file.parent}: {file.name}", "restore the file"
    found = read_json(read_text(file, where), where, fix)
    entries: dict[str, Any] = found if isinstance(found, dict) else {"": found}
    hashes: dict[str, Any] = {
        name: entry.get("sha256") if isinstance(entry, dict) else None for name, entry in entries.items()
    }
    known = all(isinstance(value, str) for value in hashes.values())
    expect(
        known, "--workdir", str(file.parent), f"networks with their sha256 in {RECORD}", fix, "other values"
    )
    return hashes


def check_one_encoder(stages: Mapping[str, tuple[str, str | None]]) -> None:
    """Raise `UserError` where a stage makes embeddings of one image encoder, and a later stage reads another's.

    Args:
      stages: by name in order, the run's folder, and the condition of later stages that its samples fill.
    """
    records = {name: epath.Path(folder).expanduser() / RECORD for name, (folder, _) in stages.items()}
    known = {name: read_record(file) if file.exists() else {} for name, file in records.items()}
    names = list(stages)
    for i, name in enumerate(names):
        made, read = known[name].get(image_embedding.NAME), f"conditioner/parts_{stages[name][1]}/encoder"
        for after in names[i + 1 :]:
            other = known[after].get(read)
            fix = f"train one of them again, with the image encoder of the other, or take another run for {after}"
            expected = f"the image encoder that {name} was trained with (sha256 {str(made)[:16]})"
            same = made == other or None in (made, other)  # None where a run has no such record
            got = f"another (sha256 {str(other)[:16]})"
            expect(same, f"stages.{after}", stages[after][0], expected, fix, got)


def placed(tree: Params, mesh: jax.sharding.Mesh, dtype: str) -> Params:
    """Parameters as `Weights.read` returns them on `mesh`, in the types of `trees.with_dtype`."""
    shardings = partitioning.shardings(tree, mesh)

    def place(leaf: np.ndarray, sharding: Any) -> jax.Array:
        held = dtype_in(leaf, dtype)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index].astype(held))

    return jax.tree.map(place, nn.meta.unbox(tree), shardings)


def _module(tree: Params, path: str) -> Params:
    for name in filter(None, path.split("/")):
        if not isinstance(tree, Mapping) or name not in tree:
            known = some_of(tree) if isinstance(tree, Mapping) else "no modules"
            raise UserError(
                f"module={path!r}: expected the path of a module, got no {name!r}. Fix: use one of {known}"
            )
        tree = tree[name]
    return tree
