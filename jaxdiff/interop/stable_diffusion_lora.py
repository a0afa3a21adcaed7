"""LoRA files in the parameters of Stable Diffusion."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxdiff.interop import stable_diffusion_unet, text_encoders
from jaxdiff.interop.lora.adapters import Adapter
from jaxdiff.interop.lora.merging import merged_all
from jaxdiff.interop.lora.reading import read_lora
from jaxdiff.interop.mapping import Entry
from jaxdiff.interop.pending import Pending
from jaxdiff.interop.stable_diffusion import TEXT
from jaxdiff.interop.stable_diffusion_export import Exported, numbered

Tensors = Mapping[str, Pending]


def merged(model: Exported, files: Sequence[tuple[str, float]]) -> dict[str, np.ndarray]:
    """The parameters of the denoiser that LoRA files change, with all files merged, by their paths.

    Args:
      model: the model; only the weights that change are read.
      files: paths of LoRA files, each with its scale.

    Raises:
      UserError: a file is damaged, or one of its keys fits no weight of the model.
    """
    networks = _networks(model)
    shapes = {
        name: {key: each.shape for key, each in tensors.items()} for name, (tensors, _) in networks.items()
    }
    read = [(read_lora(path, shapes), scale) for path, scale in files]
    found = {}
    for name, (tensors, entries) in networks.items():
        own = [(adapters[name], scale) for adapters, scale in read]
        weights = _changed(tensors, own)
        for entry in entries:
            if weights.keys() & entry.keys:
                parts = [weights[key] if key in weights else tensors[key].read() for key in entry.keys]
                found[entry.path] = entry.layout.load(parts, model.arrays[entry.path].shape)
    return found


def _networks(model: Exported) -> dict[str, tuple[Tensors, list[Entry]]]:
    """The tensors of each network that a LoRA may change, and the mapping to our paths in the denoiser."""
    entries = list(stable_diffusion_unet.entries(model.layout))
    found: dict[str, tuple[Tensors, list[Entry]]] = {"unet": (model.unet("diffusers"), entries)}
    for i, encoder in enumerate(model.encoders):
        prefix = f"{TEXT}/encoder_{i}" if len(model.encoders) > 1 else TEXT
        entries = [
            Entry(
                f"{prefix}/{entry.path}", tuple(map(text_encoders.published_name, entry.keys)), entry.layout
            )
            for entry in text_encoders.entries(encoder, "clip")
        ]
        found[numbered("text_encoder", i + model.is_refiner)] = model.text(i, "clip"), entries
    return found


def _changed(tensors: Tensors, files: Sequence[tuple[Mapping[str, Adapter], float]]) -> dict[str, np.ndarray]:
    """The weights of one network that some file changes, with all of them merged."""
    names = {name for adapters, _ in files for name in adapters}
    return merged_all({name: tensors[name].read() for name in names}, files)
