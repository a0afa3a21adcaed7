"""The networks of Stable Diffusion that LoRA files change."""

from jaxdiff.interop import stable_diffusion_unet, text_encoders
from jaxdiff.interop.lora.networks import Networks, Tensors
from jaxdiff.interop.mapping import Entry
from jaxdiff.interop.stable_diffusion import TEXT
from jaxdiff.interop.stable_diffusion_export import Exported, numbered


def networks_of(model: Exported) -> Networks:
    """The tensors of each network that a LoRA file may change, and the mapping to our paths in the denoiser."""
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
