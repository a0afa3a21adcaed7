"""Whose names the tensors of a file bear, and the mapping that goes with them."""

from collections.abc import Iterable
from typing import TypeVar

from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError, require
from jaxdiff.interop import diffusers, edm, edm2, guided_diffusion
from jaxdiff.interop.mapping import Entry
from jaxdiff.models.magnitude_unet import MagnitudeUNet
from jaxdiff.models.unet import UNet

Network = TypeVar("Network")

ATTENTION_ORDERS = {"new": "3HC", "legacy": "H3C"}


def entries(
    names: Iterable[str], denoiser: Denoiser, image_size: int, attention_order: str | None = None
) -> list[Entry]:
    """The mapping between a file's tensors and the parameters of a denoiser.

    Args:
      names: of the tensors.
      denoiser: whose network is of the same family.
      image_size: height and width of what the network sees.
      attention_order: of ADM's queries, keys and values, "new" or "legacy", which its files do not say. By default that
        of the published models: new for 64 x 64 images, legacy for the others.

    Raises:
      UserError: no known family has such names, or its networks are others than the denoiser's.
    """
    names = set(names)
    if any(name.startswith("unet.enc.") for name in names):
        return list(edm2.entries(_network(denoiser, MagnitudeUNet, "EDM2"), image_size))
    if any(name.startswith("model.enc.") for name in names):
        song = any("_aux_norm" in name for name in names)
        network = _network(denoiser, UNet, "EDM")
        return list(edm.entries(network, image_size, "SongUNet" if song else "DhariwalUNet"))
    if any(name.startswith("input_blocks.") for name in names):
        order = attention_order or ("new" if image_size == 64 else "legacy")
        require(order in ATTENTION_ORDERS, "--attention-order", order, "no such order", "give new or legacy")
        network = _network(denoiser, UNet, "guided-diffusion")
        return list(guided_diffusion.entries(network, ATTENTION_ORDERS[order]))
    if "conv_in.weight" in names:
        return list(diffusers.entries(_network(denoiser, UNet, "diffusers")))
    shown = ", ".join(sorted(names)[:4])
    raise UserError(
        f"--from: no family of networks has tensors of such names ({shown}, ...). Fix: give weights of "
        "guided-diffusion, EDM, EDM2 or a UNet2DModel of diffusers"
    )


def _network(denoiser: Denoiser, cls: type[Network], family: str) -> Network:
    if not isinstance(denoiser.network, cls):
        raise UserError(
            f"config.task.denoiser.network={type(denoiser.network).__name__}: the file's names are those of {family}. "
            f"Fix: give a config with a {cls.__name__}"
        )
    return denoiser.network
