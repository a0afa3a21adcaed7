"""LoRA files merged into a model that samples."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdiff.codecs.latent import NAME, Latent
from jaxdiff.errors import expect
from jaxdiff.generation.model import SampledModel
from jaxdiff.interop import stable_diffusion_lora
from jaxdiff.interop.stable_diffusion_export import Exported

Model = TypeVar("Model", bound=SampledModel)


def with_lora(model: Model, files: Sequence[tuple[str, float]]) -> Model:
    """The model with LoRA files merged into its U-Net and its text encoders.

    Args:
      model: a `Generator` of Stable Diffusion.
      files: paths of LoRA files in any layout, each with its scale; see `jaxdiff.interop.lora.reading`.

    Raises:
      UserError: the model is another one; or a file is damaged, or a key in it fits no weight of the model.
    """
    codec = model.codec
    fix = "use LoRA files with a run that jaxdiff.convert made of Stable Diffusion"
    latent = isinstance(codec, Latent)
    expect(latent, "--lora", [path for path, _ in files], "a run of Stable Diffusion", fix, "another one")
    assert isinstance(codec, Latent)
    exported = Exported(model.denoiser, codec, model.params, model.frozen[NAME])
    arrays = flatten_dict(model.params, sep="/")
    for path, array in stable_diffusion_lora.merged(exported, files).items():
        arrays[path] = jax.device_put(array, arrays[path].sharding)
    return dataclasses.replace(model, params=unflatten_dict(arrays, sep="/"))
