"""Parameter names of EDM's published snapshots: DDPM++, NCSN++ and ADM (Karras et al. 2022; NVlabs/edm)."""

from collections.abc import Iterator
from typing import Literal

from jaxdiff.interop.mapping import DENSE, SAME, Entry, conv, dense, from_heads, heads, norm
from jaxdiff.interop.structure import modules
from jaxdiff.models.unet import UNet

BUFFERS = ("resample_filter", "u")
"""Last parts of names of buffers: filters, and iDDPM's table of noise levels."""


def entries(
    network: UNet,
    image_size: int,
    names: Literal["SongUNet", "DhariwalUNet"],
    label: str = "label",
    augmentation: str = "augment",
) -> Iterator[Entry]:
    """The mapping for a `Denoiser` with this network.

    Args:
      network: the denoiser's network.
      image_size: height and width of the images; names contain the resolution of a block.
      names: class of the published network: "SongUNet" is DDPM++ and NCSN++, "DhariwalUNet" is ADM; they name their
        outermost layers differently. "SongUNet" multiplies one-hot labels by the root of their number:
        `ClassLabel.scale`.
      label, augmentation: names of these conditions, if there are any.
    """
    song = names == "SongUNet"
    yield Entry("conditioner/noise/frequencies", ("model.map_noise.freqs",), SAME)
    yield from dense("conditioner/noise/dense_0", "model.map_layer0")
    yield from dense("conditioner/noise/dense_1", "model.map_layer1")
    yield Entry(f"conditioner/parts_{label}/table", ("model.map_label.weight",), DENSE)
    yield Entry(f"conditioner/parts_{label}/bias", ("model.map_label.bias",), SAME)
    yield Entry(f"conditioner/parts_{augmentation}/kernel", ("model.map_augment.weight",), DENSE)

    for module in modules(network):
        ours, size = f"network/{module.name}", image_size >> module.level
        if module.kind == "stem":
            yield from conv(ours, f"model.enc.{size}x{size}_conv")
        elif module.kind == "head":
            theirs = f"dec.{size}x{size}_aux" if song else "out"
            yield from norm(ours.replace("head", "head_norm"), f"model.{theirs}_norm")
            yield from conv(ours, f"model.{theirs}_conv")
        elif module.kind == "input":
            yield from conv(f"{ours}/conv", f"model.enc.{size // 2}x{size // 2}_aux_{network.input_path}")
        else:
            theirs = {
                "encoder": f"enc.{size}x{size}_block{module.index}",
                "down": f"enc.{size // 2}x{size // 2}_down",
                "middle": f"dec.{size}x{size}_in{module.index}",
                "decoder": f"dec.{size}x{size}_block{module.index}",
                "up": f"dec.{2 * size}x{2 * size}_up",
            }[module.kind]
            yield from _block(ours, f"model.{theirs}")


def _block(ours: str, theirs: str) -> Iterator[Entry]:
    residual, attention = f"{ours}/residual", f"{ours}/self_attention"
    yield from norm(f"{residual}/norm_0", f"{theirs}.norm0")
    yield from conv(f"{residual}/conv_0", f"{theirs}.conv0")
    yield from dense(f"{residual}/modulation", f"{theirs}.affine")
    yield from norm(f"{residual}/norm_1", f"{theirs}.norm1")
    yield from conv(f"{residual}/conv_1", f"{theirs}.conv1")
    yield from conv(f"{residual}/skip", f"{theirs}.skip")
    yield from norm(f"{attention}/norm", f"{theirs}.norm2")
    yield Entry(f"{attention}/query_key_value/kernel", (f"{theirs}.qkv.weight",), heads("HC3", axes=2))
    yield Entry(f"{attention}/query_key_value/bias", (f"{theirs}.qkv.bias",), heads("HC3"))
    yield Entry(f"{attention}/out/kernel", (f"{theirs}.proj.weight",), from_heads(axes=2))
    yield Entry(f"{attention}/out/bias", (f"{theirs}.proj.bias",), SAME)
