"""Which file of a folder has the weights, as diffusers and transformers lay folders out."""

import pathlib
from typing import Any

from jaxdiff.interop.files import Unreadable, read_json

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_ENDS = ("safetensors", "safetensors.index.json", "bin", "bin.index.json", "fp16.safetensors", "fp16.bin")
"""In the order in which they are wanted: whole before halves, safe formats before others."""


def model_folder(folder: pathlib.Path, ema: bool | None) -> pathlib.Path:
    """The folder of the network: this one, or if it is of a pipeline or a training run, ``unet_ema`` or ``unet``."""
    parts = [name for name in ("unet", "unet_ema") if (folder / name).is_dir()]
    if not parts:
        return folder
    averaged = "unet_ema" in parts and ema is not False
    return folder / ("unet_ema" if averaged else "unet")


def weights_file(folder: pathlib.Path, ema: bool | None) -> pathlib.Path:
    """The file with the weights, or the index of several. With ``ema=False`` the one that is called ``non_ema``."""
    ends = tuple(f"non_ema.{end}" for end in _ENDS) if ema is False else ()
    for end in (*ends, *_ENDS):
        for stem in _STEMS:
            file = folder / f"{stem}.{end}"
            if file.exists():
                return file
    raise Unreadable(
        f"no weights in {folder.name}/ (looked for {_STEMS[0]}.safetensors and its like)",
        "name the file of weights, or the folder of a diffusers model or pipeline",
    )


def shards(index: pathlib.Path) -> dict[str, list[str]]:
    """The files that an index lists, each with its tensors. They lie beside it: no other place can be named."""
    table = read_json(index).get("weight_map")
    if not (isinstance(table, dict) and table and all(isinstance(file, str) for file in table.values())):
        raise Unreadable(
            f"{index.name} is no index of weights", "name the index, or the folder that it is in"
        )
    found: dict[str, list[str]] = {}
    for name, file in table.items():
        if pathlib.PurePath(file).name != file or "\\" in file:
            raise Unreadable(f"{index.name} names {file[:200]!r}, which is not beside it")
        found.setdefault(file, []).append(name)
    return found


def settings(folder: pathlib.Path, root: pathlib.Path) -> dict[str, Any]:
    """The network's ``config.json`` as "config", and the noise schedule of its pipeline as "scheduler"."""
    files = {"config": folder / "config.json", "scheduler": root / "scheduler" / "scheduler_config.json"}
    return {name: read_json(file) for name, file in files.items() if file.exists()}
