"""configs/ldm_imagenet256.py is the published LDM-4 in size and structure, on an autoencoder of its own."""

import pathlib
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdiff import config as configs

FILE = pathlib.Path(__file__).parent.parent / "configs" / "ldm_imagenet256.py"
CLASSES, TOKEN = 1001, 512  # the last class is the null
VAE = 55_312_063


def load(variant):
    return configs.build(configs.load(f"{FILE}:{variant}"))


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(nn.meta.unbox(tree)))


@pytest.fixture(scope="module")
def ldm():
    return load("ldm4")


@pytest.fixture(scope="module")
def params(ldm):
    return jax.eval_shape(lambda: ldm.task.for_shapes().init(jax.random.key(0)))


@pytest.mark.slow
def test_parameters_are_the_published_ones(ldm, params):
    """400 M in the paper, for the U-Net with its embedding of time; diffusers has the same number, below."""
    tokens = size(params["conditioner"]["parts_label"])
    assert tokens == CLASSES * TOKEN
    assert f"{(size(params) - tokens) / 1e6:.2f}" == "400.92"
    assert size(ldm.task.for_shapes().frozen_shapes()["autoencoder"]) == VAE
    for count in (size(params), size(params) - tokens, VAE):
        assert f"{count:,}" in FILE.read_text()


def test_the_noise_is_the_published_one(ldm):
    """Betas whose root is linear, from 0.0015 to 0.0195; the signal after each step is their running product."""
    t = jnp.arange(1, 1001) / 1000
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    expected = np.log(np.cumprod(1 - betas)) - np.log1p(-np.cumprod(1 - betas))
    np.testing.assert_allclose(ldm.task.denoiser.process.schedule.log_snr(t), expected, rtol=1e-4, atol=1e-4)
    assert ldm.sampling.calls(ldm.task.denoiser.process) == 250


def test_the_model_reads_the_autoencoder_that_the_first_command_trains(ldm):
    task = load("autoencoder").task
    codec = ldm.task.codec
    assert codec.network == task.network
    assert ldm.task.data_shape == (64, 64, 3)
    trained = re.search(r"ldm_imagenet256\.py:autoencoder --workdir (\S+)", FILE.read_text())[1]
    assert codec.weights.workdir == codec.statistics.workdir == trained
    assert codec.weights.module in jax.eval_shape(lambda: task.init(jax.random.key(0)))
    names = {metric.table()[0].key.partition(".")[0] for metric in load("autoencoder").evaluation.metrics}
    assert "latents" in names


UNET = {
    "sample_size": 64, "in_channels": 3, "out_channels": 3, "block_out_channels": (192, 384, 576, 960),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 1, "cross_attention_dim": TOKEN,
}  # fmt: skip
"""The released configuration in diffusers' terms, where `attention_head_dim` is the number of heads."""


@pytest.mark.slow
def test_networks_have_as_many_parameters_as_in_diffusers(params):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    levels = {"block_out_channels": (128, 256, 512), "layers_per_block": 2, "latent_channels": 3}
    kinds = {
        f"{way.lower()}_block_types": (f"{way}{side}coderBlock2D",) * 3
        for way, side in (("Down", "En"), ("Up", "De"))
    }
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        unet = diffusers.UNet2DConditionModel(**UNET)
        autoencoder = diffusers.AutoencoderKL(**levels, **kinds)
    whole, vae = (sum(each.numel() for each in model.parameters()) for model in (unet, autoencoder))
    assert (size(params) - CLASSES * TOKEN, VAE) == (whole, vae)
