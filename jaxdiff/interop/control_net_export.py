"""The ControlNet of a run as diffusers' `ControlNetModel`, or as an original file."""

from typing import Any

import numpy as np

from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError
from jaxdiff.interop.control_net import Naming, control_net_tensors
from jaxdiff.interop.stable_diffusion_unet_export import layout_of, unet_config
from jaxdiff.models.control_net import Controlled, ControlNet
from jaxdiff.typing import Params

UNREAD = (
    "sample_size", "out_channels", "up_block_types", "dropout", "time_embedding_dim", "time_cond_proj_dim",
)  # fmt: skip
"""Fields of a U-Net's `config.json` that a ControlNet's lacks."""


def exported_control_net(
    denoiser: Denoiser, params: Params, naming: Naming = "diffusers"
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The `config.json` and the tensors of the only ControlNet of a model.

    Args:
      denoiser: of the model.
      params: its parameters.
      naming: of the tensors.

    Raises:
      UserError: the model has several ControlNets, or one that diffusers cannot express.
    """
    name, network = _only_control(denoiser)
    own = params["network"][f"controls_{name}"]
    return _config(denoiser, network, own), control_net_tensors(network, own, naming)


def _config(denoiser: Denoiser, network: ControlNet, params: Params) -> dict[str, Any]:
    """The fields of the U-Net that is copied, and those of the hint encoder."""
    conditioner = denoiser.conditioner.clone(noise=network.noise, mapping=network.mapping)
    copy = denoiser.clone(network=network.network, conditioner=conditioner)
    layout = layout_of(copy, {"network": params, "conditioner": {"mapping": params.get("mapping", {})}})
    config = {field: value for field, value in unet_config(layout).items() if field not in UNREAD}
    return config | {
        "_class_name": "ControlNetModel",
        "conditioning_channels": params["hint"]["conv_in"]["kernel"].shape[2],
        "conditioning_embedding_out_channels": list(network.hint_widths),
    }


def _only_control(denoiser: Denoiser) -> tuple[str, ControlNet]:
    network: Any = denoiser.network
    controls = dict(network.controls) if isinstance(network, Controlled) else {}
    if len(controls) != 1:
        raise UserError(
            f"--workdir: expected a run with one ControlNet, got {len(controls)}: {', '.join(controls) or 'none'}. "
            "Fix: train each in a run of its own"
        )
    return next(iter(controls.items()))
