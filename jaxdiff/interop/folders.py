"""Model folders in the layouts of diffusers and transformers: finding the file of the weights."""

import pathlib
from typing import Any

from jaxdiff.interop.files import Unreadable, read_json

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_ENDS = ("safetensors", "safetensors.index.json", "bin", "bin.index.json", "fp16.safetensors", "fp16.bin")
"""In order of preference: full before half precision, safetensors before pickles."""


def model_folder(folder: pathlib.Path, ema: bool | None) -> pathlib.Path:
    """The folder of the network: ``unet_ema`` or ``unet`` in a pipeline or training run, else `folder` itself."""
    parts = [name for name in ("unet", "unet_ema") if (folder / name).is_dir()]
    if not parts:
        return folder
    averaged = "unet_ema" in parts and ema is not False
    return folder / ("unet_ema" if averaged else "unet")


def weights_file(folder: pathlib.Path, ema: bool | None) -> pathlib.Path:
    """The file of the weights, or the index of several files; with ``ema=False``, the one named ``non_ema``."""
    ends = tuple(f"non_ema.{end}" for end in _ENDS) if ema is False else ()
    for end in (*ends, *_ENDS):
        for stem in _STEMS:
            file = folder / f"{stem}.{end}"
            if file.exists():
                return file
    raise Unreadable(
        f"expected a file such as {_STEMS[0]}.safetensors in {folder.name}/, got none",
        "name the file of weights, or the folder of a diffusers model or pipeline",
    )


def shards(index: pathlib.Path) -> dict[str, list[str]]:
    """The files that an index lists, each with its tensor names. They must be in the folder of the index."""
    table = read_json(index).get("weight_map")
    if not (isinstance(table, dict) and table and all(isinstance(file, str) for file in table.values())):
        raise Unreadable(
            f"expected a weight_map in {index.name}, got none", "name the index, or the folder of the index"
        )
    found: dict[str, list[str]] = {}
    for name, file in table.items():
        if pathlib.PurePath(file).name != file or "\\" in file:
            raise Unreadable(f"expected files next to {index.name}, got {file[:200]!r}")
        found.setdefault(file, []).append(name)
    return found


def settings(folder: pathlib.Path, root: pathlib.Path) -> dict[str, Any]:
    """The network's ``config.json`` as "config", and its pipeline's scheduler config as "scheduler"."""
    files = {"config": folder / "config.json", "scheduler": root / "scheduler" / "scheduler_config.json"}
    return {name: read_json(file) for name, file in files.items() if file.exists()}
