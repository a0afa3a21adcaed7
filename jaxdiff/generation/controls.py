"""Published controls for a model that is sampled: ControlNets, T2I-Adapters and IP-Adapters.

>>> generator = Generator.load("runs/sd15")
>>> generator = with_control_net(generator, "edges", "control_v11p_sd15_canny.safetensors", scale=0.8)
>>> generator = with_ip_adapter(generator, "style", "ip-adapter_sd15.safetensors", "models/image_encoder")
>>> images = generator(text="a cat", edges=edges, style=painting)

Each adds a condition of the given name. A model can have several of each kind; their effects add up.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from jaxdiff.conditioning.condition import Condition
from jaxdiff.conditioning.conditioner import parameters_of
from jaxdiff.conditioning.control import AdapterImage, ControlImage
from jaxdiff.conditioning.image_prompt import PromptImage
from jaxdiff.errors import UserError, expect
from jaxdiff.generation.model import SampledModel
from jaxdiff.interop.clip_vision import vision_encoder, vision_params
from jaxdiff.interop.control_net import control_net, control_net_params
from jaxdiff.interop.ip_adapter import ip_adapter
from jaxdiff.interop.t2i_adapter import places_of, t2i_adapter, t2i_adapter_params
from jaxdiff.interop.tensors import read_all_tensors, read_tensors
from jaxdiff.models.control_net import Controlled, uncontrolled
from jaxdiff.models.ip_adapter import Resampler
from jaxdiff.models.unet import UNet
from jaxdiff.typing import Params

Path = str | os.PathLike
Model = TypeVar("Model", bound=SampledModel)


def with_control_net(model: Model, name: str, file: Path, *, scale: float = 1.0) -> Model:
    """The model with a ControlNet, and a condition for its control image.

    Args:
      model: a generator.
      name: of the condition, and of the ControlNet.
      file: a file, or a folder of diffusers.
      scale: factor of what the ControlNet adds; 0 switches it off.

    Raises:
      UserError: the model has a condition of this name; or the file is not a ControlNet for this model.
    """
    read = read_tensors(file)
    network = control_net(model.denoiser, read.tensors, read.metadata.get("config"))
    params = control_net_params(network, read.tensors)
    channels = params["hint"]["conv_in"]["kernel"].shape[2]
    factor = model.image_shape[0] // model.data_shape[0]
    fix = "use a ControlNet that was made for this model"
    expect(
        network.factor == factor, "hint_widths", network.hint_widths, f"an image {factor} times the data", fix
    )
    condition = ControlImage(channels, 1 / factor, scale, name)
    unet: Any = _unet(model)
    before = model.denoiser.network
    others = before.controls if isinstance(before, Controlled) else {}
    controlled = Controlled(unet.clone(), {**others, name: network})
    return _extended(model, name, condition, {}, {f"controls_{name}": params}, controlled)


def with_t2i_adapter(model: Model, name: str, file: Path, *, scale: float = 1.0) -> Model:
    """The model with a T2I-Adapter, and a condition for its control image. Arguments as for a ControlNet."""
    read = read_tensors(file)
    adapter = t2i_adapter(read.tensors, read.metadata.get("config"))
    params = t2i_adapter_params(adapter, read.tensors)
    first = params["stage_0"]["conv_in"] if adapter.light else params["conv_in"]
    channels = first["kernel"].shape[2] // adapter.patch**2
    factor = model.data_shape[0] / model.image_shape[0]
    places = places_of(_unet(model), adapter)
    condition = AdapterImage(channels, factor, scale, adapter=adapter, places=places)
    return _extended(model, name, condition, params)


def with_ip_adapter(model: Model, name: str, file: Path, image_encoder: Path, *, scale: float = 1.0) -> Model:
    """The model with an IP-Adapter, and a condition for its image prompt.

    Args:
      model, name, file, scale: as for a ControlNet.
      image_encoder: file or folder of CLIP's image encoder that the adapter was trained with.

    Raises:
      UserError: as for a ControlNet; or the image encoder is another one.
    """
    adapter = ip_adapter(_unet(model), read_all_tensors(file), name)
    read = read_tensors(image_encoder)
    encoder = vision_encoder(read.tensors, read.metadata.get("config"))
    plus = isinstance(adapter.projection, Resampler)
    first = adapter.projection_params["proj_in" if plus else "project"]
    width = encoder.width if plus else encoder.projection
    needed = first["kernel"].shape[0]
    fix = "give the image encoder that the adapter was trained with"
    expect(
        width == needed, "image_encoder", os.fspath(image_encoder), f"vectors of {needed}", fix, f"{width}"
    )
    encoder = encoder.clone(layer=-2 if plus else -1)
    params = {"encoder": vision_params(encoder, read.tensors), "projection": adapter.projection_params}
    condition = PromptImage(encoder, adapter.projection, name, scale)
    return _extended(model, name, condition, params, adapter.network_params)


def _unet(model: Any) -> UNet:
    network = uncontrolled(model.denoiser.network)
    if not isinstance(network, UNet):
        raise UserError(
            f"network={type(network).__name__}: expected a UNet, got {type(network).__name__}. "
            "Fix: use a model that has one, such as Stable Diffusion"
        )
    return network


def _extended(
    model: Model,
    name: str,
    condition: Condition,
    params: Params,
    network_params: Params | None = None,
    network: Controlled | None = None,
) -> Model:
    """The model with one more condition, with parameters of the condition and of the network."""
    denoiser = model.denoiser
    conditioner = denoiser.conditioner
    expect(name not in conditioner.conditions, "name", name, "a new name", "choose another name")
    added = {
        "network": network_params or {},
        "conditioner": {parameters_of(name): params} if params else {},
    }
    conditions = {**conditioner.conditions, name: condition}
    denoiser = denoiser.clone(
        conditioner=conditioner.clone(conditions=conditions), network=network or denoiser.network
    )
    return dataclasses.replace(model, denoiser=denoiser, params=_joined(model.params, added))


def _joined(one: Params, other: Params) -> Params:
    """Two trees of parameters as one."""
    if not isinstance(one, Mapping):
        return other
    return {**one, **{name: _joined(one.get(name), value) for name, value in other.items()}}
