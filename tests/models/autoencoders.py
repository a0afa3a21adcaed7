"""Small autoencoders of diffusers with random parameters, and the same networks of ours."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.codecs.latent import parameter_shapes
from jaxdiff.models.autoencoder_kl import AutoencoderKL
from jaxdiff.models.autoencoder_tiny import AutoencoderTiny

NETWORKS = {
    "sd": AutoencoderKL((8, 16, 16), groups=4, blocks=2),
    "sd3": AutoencoderKL((8, 16), 1, latent_channels=16, groups=8, use_quant_conv=False, use_post_quant_conv=False),
    "decoder_conv": AutoencoderKL((8, 8), 1, image_channels=1, groups=2, middle_attention=False, use_quant_conv=False),
    "tiny": AutoencoderTiny(8, (1, 2, 1), (2, 1, 1)),
    "tiny16": AutoencoderTiny(8, (2, 1), (1, 3), latent_channels=16, image_channels=1),
}  # fmt: skip


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def random_params(network, seed=0):
    """Random values for every parameter, with norms near the identity."""
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        gain = "scale" in jax.tree_util.keystr(path)
        return gain + (0.1 if leaf.ndim == 1 else 0.2) * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree.map_with_path(value, parameter_shapes(network))


@functools.cache
def peer(name, **options):
    """diffusers' network with the same architecture, every parameter random."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    net = NETWORKS[name]
    shared = {"in_channels": net.image_channels, "out_channels": net.image_channels}
    shared |= {"latent_channels": net.latent_channels}
    if isinstance(net, AutoencoderTiny):
        widths = (net.width,) * len(net.encoder_blocks)
        model = diffusers.AutoencoderTiny(
            encoder_block_out_channels=widths, decoder_block_out_channels=widths,
            num_encoder_blocks=net.encoder_blocks, num_decoder_blocks=net.decoder_blocks, **shared, **options,
        )  # fmt: skip
    else:
        levels = len(net.widths)
        model = diffusers.AutoencoderKL(
            block_out_channels=net.widths, layers_per_block=net.blocks, norm_num_groups=net.groups,
            down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
            use_quant_conv=net.use_quant_conv, use_post_quant_conv=net.use_post_quant_conv,
            mid_block_add_attention=net.middle_attention, **shared, **options,
        )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for key, value in model.named_parameters():
        drawn = torch.randn(value.shape, generator=generator)
        value.data = 1 + 0.1 * drawn if "norm" in key and key.endswith("weight") else 0.15 * drawn
        if "conv_in" in key:  # features so small that the epsilon of the first norms counts
            value.data *= 0.01
    return model.eval()


def numbers(model):
    return {key: value.detach().numpy() for key, value in model.state_dict().items()}


def run_peer(function, x):
    """A function of torch tensors [batch, channels, height, width] for arrays with channels last."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return function(torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)


def run(network, params, method, x):
    return jax.jit(lambda values, x: network.apply({"params": values}, x, method=method))(
        params, jnp.asarray(x)
    )


def close(found, expected):
    """Equal up to the rounding of float32: 1e-4 of the largest value anywhere, 1e-5 in the mean."""
    assert found.shape == expected.shape
    error, expected = np.asarray(found, float) - expected, expected.astype(float)
    assert np.abs(error).max() <= 1e-4 * np.abs(expected).max()
    assert np.sqrt(np.mean(error**2) / np.mean(expected**2)) <= 1e-5


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))
