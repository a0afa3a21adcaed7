"""Parameter names of EDM2's published snapshots (Karras et al. 2024; NVlabs/edm2).

Weights are stored as trained, with any length; the layers of `models.magnitude` normalise them.
"""

from collections.abc import Iterator

import numpy as np

from jaxdiff.interop.mapping import CONV, DENSE, SAME, Entry, Layout, simple
from jaxdiff.models.magnitude_unet import MagnitudeUNet


def entries(network: MagnitudeUNet, image_size: int, label: str = "label") -> Iterator[Entry]:
    """The mapping for a `Denoiser` with this network, `MagnitudeNoiseLevel`, and `MagnitudeUncertainty`.

    Args:
      network: the denoiser's network.
      image_size: height and width of the network's input; names contain the resolution of a block. Latents of
        512 x 512 pixels have 64.
      label: name of the `MagnitudeClassLabel`, if there is one.
    """
    for ours, theirs in (("conditioner/noise", "unet.emb"), ("uncertainty", "logvar")):
        yield Entry(f"{ours}/fourier/frequencies", (f"{theirs}_fourier.freqs",), SAME)
        yield Entry(f"{ours}/fourier/phases", (f"{theirs}_fourier.phases",), SAME)
    yield Entry("conditioner/noise/linear/weight", ("unet.emb_noise.weight",), DENSE)
    yield Entry(f"conditioner/parts_{label}/weight", ("unet.emb_label.weight",), DENSE)
    yield Entry("uncertainty/linear/weight", ("logvar_linear.weight",), DENSE)
    yield Entry("network/stem/weight", (f"unet.enc.{image_size}x{image_size}_conv.weight",), CONV)
    yield Entry("network/head/weight", ("unet.out_conv.weight",), CONV)
    yield Entry("network/gain", ("unet.out_gain",), SAME)
    for ours, theirs in _blocks(network, image_size):
        yield from _block(f"network/{ours}", f"unet.{theirs}", network.head_dim)


def _blocks(network: MagnitudeUNet, size: int) -> Iterator[tuple[str, str]]:
    """Our name and the published name of every block."""
    last = len(network.levels) - 1
    for i, level in enumerate(network.levels):
        at = f"{size >> i}x{size >> i}"
        if i > 0:
            yield f"down_{i - 1}", f"enc.{at}_down"
        for j in range(level.blocks):
            yield f"encoder_{i}_block_{j}", f"enc.{at}_block{j}"
        if i < last:
            yield f"up_{i + 1}", f"dec.{at}_up"
        else:
            yield from ((f"middle_block_{j}", f"dec.{at}_in{j}") for j in range(2))
        for j in range(level.blocks + 1):
            yield f"decoder_{i}_block_{j}", f"dec.{at}_block{j}"


def _block(ours: str, theirs: str, head_dim: int) -> Iterator[Entry]:
    yield Entry(f"{ours}/gain", (f"{theirs}.emb_gain",), SAME)
    yield Entry(f"{ours}/conv_0/weight", (f"{theirs}.conv_res0.weight",), CONV)
    yield Entry(f"{ours}/modulation/weight", (f"{theirs}.emb_linear.weight",), DENSE)
    yield Entry(f"{ours}/conv_1/weight", (f"{theirs}.conv_res1.weight",), CONV)
    yield Entry(f"{ours}/skip/weight", (f"{theirs}.conv_skip.weight",), CONV)
    query_key_value = _by_head(head_dim)
    yield Entry(f"{ours}/attention/query_key_value/weight", (f"{theirs}.attn_qkv.weight",), query_key_value)
    yield Entry(f"{ours}/attention/out/weight", (f"{theirs}.attn_proj.weight",), CONV)


def _by_head(head_dim: int) -> Layout:
    """Rows over (heads, channels, 3) -> a kernel [1, 1, in, out] with outputs over (heads, 3, channels)."""

    def swap(array: np.ndarray, inner: int) -> np.ndarray:
        """Exchange the two inner axes of (heads, 3 head_dim / inner, inner), the last axis of an array."""
        split = array.reshape(*array.shape[:-1], -1, 3 * head_dim // inner, inner)
        return np.swapaxes(split, -1, -2).reshape(array.shape)

    return simple(
        lambda tensor: swap(tensor.transpose(2, 3, 1, 0), 3),
        lambda array: swap(array, head_dim).transpose(3, 2, 0, 1),
    )
