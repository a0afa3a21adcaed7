"""The networks of a model as LoRA files name them, and files merged into its parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.denoiser import Denoiser
from jaxdiff.interop.lora.adapters import Adapter
from jaxdiff.interop.lora.merging import merged_all
from jaxdiff.interop.lora.reading import read_lora
from jaxdiff.interop.lora.trained import own_entries
from jaxdiff.interop.mapping import Entry, to_pending_tensors
from jaxdiff.interop.pending import Pending
from jaxdiff.models.lora import Lora

Tensors = Mapping[str, Pending]
Networks = Mapping[str, tuple[Tensors, Sequence[Entry]]]
"""Tensors by the names that LoRA files use, and their mapping to our paths, by component ("unet", "text_encoder")."""

EVERY = Lora(targets=("*",))


def own_networks(denoiser: Denoiser, data_shape: tuple[int, ...], arrays: Mapping[str, Any]) -> Networks:
    """A model of which nobody else has names: the component "unet" is the whole denoiser, under names of our own.

    Args:
      denoiser: the model.
      data_shape: the shape of a diffused example.
      arrays: its parameters by their paths.
    """
    conditioner = denoiser.conditioner

    def init() -> Any:
        x, t = jnp.zeros((1, *data_shape)), jnp.full((1,), 0.5)
        fields = conditioner.example(1, data_shape)
        return denoiser.init(jax.random.key(0), x, t, fields, conditioner.none_dropped(1), train=False)[
            "params"
        ]

    entries = list(own_entries(EVERY.chosen(jax.eval_shape(init))))
    kernels = {entry.path: arrays[entry.path] for entry in entries}
    return {"unet": (to_pending_tensors(entries, kernels), entries)}


def merged_params(
    networks: Networks, arrays: Mapping[str, Any], files: Sequence[tuple[str, float]]
) -> dict[str, np.ndarray]:
    """The parameters that LoRA files change, with all files merged, by their paths.

    Args:
      networks: the tensors that files may change, see `networks_of`; only those that change are read.
      arrays: our parameters by their paths; only shapes are read.
      files: paths of LoRA files, each with its scale.

    Raises:
      UserError: a file is damaged, or one of its keys fits no weight of the model.
    """
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
                found[entry.path] = entry.layout.load(parts, arrays[entry.path].shape)
    return found


def _changed(tensors: Tensors, files: Sequence[tuple[Mapping[str, Adapter], float]]) -> dict[str, np.ndarray]:
    """The weights of one network that some file changes, with all of them merged."""
    names = {name for adapters, _ in files for name in adapters}
    return merged_all({name: tensors[name].read() for name in names}, files)
