"""Detection of the source codebase from tensor names; its parameter mapping."""

from collections.abc import Iterable
from typing import TypeVar

from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError, expect
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
      names: names of the tensors.
      denoiser: denoiser with the same network.
      image_size: height and width of the network's input.
      attention_order: order of ADM's queries, keys and values, "new" or "legacy"; its files do not state it. Default:
        that of the published models, new for 64 x 64 images and legacy for all others.

    Raises:
      UserError: the names are of no known codebase, or the denoiser's network is of another class.
    """
    names = set(names)
    family = _family(names)
    if family == "EDM2":
        return list(edm2.entries(_network(denoiser, MagnitudeUNet, family), image_size))
    if family == "EDM":
        song = any("_aux_norm" in name for name in names)
        network = _network(denoiser, UNet, family)
        return list(edm.entries(network, image_size, "SongUNet" if song else "DhariwalUNet"))
    if family == "guided-diffusion":
        order = attention_order or ("new" if image_size == 64 else "legacy")
        expect(order in ATTENTION_ORDERS, "--attention-order", order, "new or legacy", "choose one of these")
        network = _network(denoiser, UNet, family)
        return list(guided_diffusion.entries(network, ATTENTION_ORDERS[order]))
    if family == "diffusers":
        return list(diffusers.entries(_network(denoiser, UNet, family)))
    shown = ", ".join(sorted(names)[:4])
    raise UserError(
        f"--from: expected tensors named as in guided-diffusion, EDM, EDM2 or diffusers' UNet2DModel, got {shown}, ... "
        "Fix: give weights of one of these"
    )


def unwrapped(names: Iterable[str]) -> tuple[str, dict[str, str]]:
    """The prefix that wrappers put before all names, such as ``module.`` or ``_orig_mod.``, and {shorter name: name}.

    Prefixes are removed until the names are those of a known codebase. Names without a dot, which are counters of a
    wrapper, are left out with them. If no codebase has such names, the prefix is "" and nothing changes.
    """
    given = list(names)
    prefix, left = "", set(given)
    while _family(left) is None:
        heads = {name.partition(".")[0] for name in left if "." in name}
        if len(heads) != 1:
            return "", {name: name for name in given}
        head = f"{heads.pop()}."
        prefix, left = prefix + head, {name.removeprefix(head) for name in left if name.startswith(head)}
    return prefix, {name.removeprefix(prefix): name for name in given if name.startswith(prefix)}


def _family(names: set[str]) -> str | None:
    """The codebase whose networks have tensors of these names."""
    if "conv_in.weight" in names:
        return "diffusers"
    prefixes = {"unet.enc.": "EDM2", "model.enc.": "EDM", "input_blocks.": "guided-diffusion"}
    found = (family for prefix, family in prefixes.items() if any(name.startswith(prefix) for name in names))
    return next(found, None)


def _network(denoiser: Denoiser, cls: type[Network], family: str) -> Network:
    if not isinstance(denoiser.network, cls):
        raise UserError(
            f"config.task.denoiser.network={type(denoiser.network).__name__}: expected a {cls.__name__}, because the "
            f"tensors are named as in {family}, got {type(denoiser.network).__name__}. "
            f"Fix: give a config with a {cls.__name__}"
        )
    return denoiser.network
