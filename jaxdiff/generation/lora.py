"""LoRA files merged into a model that samples."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdiff.codecs.latent import NAME, Latent
from jaxdiff.generation.model import SampledModel
from jaxdiff.interop.lora.networks import Networks, merged_params, own_networks
from jaxdiff.interop.stable_diffusion_export import Exported, is_stable_diffusion
from jaxdiff.interop.stable_diffusion_lora import networks_of

Model = TypeVar("Model", bound=SampledModel)


def with_lora(model: Model, files: Sequence[tuple[str, float]]) -> Model:
    """The model with LoRA files merged into its network and its text encoders.

    Args:
      model: a `Generator`. Files for Stable Diffusion are in any layout; those for other models are what
        ``jaxdiff.convert --only-lora`` has written.
      files: paths of LoRA files, each with its scale; see `jaxdiff.interop.lora.reading`.

    Raises:
      UserError: a file is damaged, or a key in it fits no weight of the model.
    """
    arrays = flatten_dict(model.params, sep="/")
    for path, array in merged_params(_networks(model), arrays, files).items():
        arrays[path] = jax.device_put(array, arrays[path].sharding)
    return dataclasses.replace(model, params=unflatten_dict(arrays, sep="/"))


def _networks(model: SampledModel) -> Networks:
    if isinstance(model.codec, Latent) and is_stable_diffusion(model.denoiser):
        return networks_of(Exported(model.denoiser, model.codec, model.params, model.frozen[NAME]))
    return own_networks(model.denoiser, model.data_shape, flatten_dict(model.params, sep="/"))
