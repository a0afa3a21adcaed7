"""Spatial transformers against diffusers' `Transformer2DModel` and `UNet2DConditionModel`."""

import functools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import UserError
from jaxdiff.interop import diffusers as layout
from jaxdiff.interop import spatial_transformer
from jaxdiff.interop.mapping import to_params, to_tensors
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.spatial_transformer import SpatialTransformer, SpatialTransformerStack
from jaxdiff.models.unet import Level, UNet

QUICK = {"xla_backend_optimization_level": 0}
PARTS = {
    "sd1": SpatialTransformer(heads=4, head_dim=None, groups=8),
    "sd2": SpatialTransformer(head_dim=8, linear_projection=True, groups=8),
    "sdxl": SpatialTransformer(depth=2, head_dim=16, linear_projection=True, groups=8),
    "deep_conv": SpatialTransformer(depth=2, heads=2, head_dim=None, groups=8),
    "no_tokens": SpatialTransformer(heads=4, head_dim=None, groups=8, cross_attention=False),
    "tokens_only": SpatialTransformer(heads=4, head_dim=None, groups=8, only_cross_attention=True),
}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def tokens(width, seed=2):
    return Tokens(jnp.asarray(draw(2, 7, width, seed=seed)), jnp.ones((2, 7), bool))


def randomise(module):
    """Random values for all parameters: zero-initialised layers would hide all others."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    for name, value in module.named_parameters():
        gain = "norm" in name and name.endswith("weight")
        value.data = float(gain) + 0.1 * torch.randn(value.shape, generator=generator)
    return module.eval()


def numbers(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def close(found, expected):
    assert np.abs(np.asarray(found) - expected).max() <= 1e-5 * np.abs(expected).max()


def nchw(x):
    torch = pytest.importorskip("torch")
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", PARTS)
def test_the_transformer_is_diffusers(name):
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    part = PARTS[name]
    heads = part.heads or 32 // part.head_dim
    peer = randomise(
        diffusers.Transformer2DModel(
            num_attention_heads=heads, attention_head_dim=32 // heads, in_channels=32, num_layers=part.depth,
            norm_num_groups=8, use_linear_projection=part.linear_projection,
            cross_attention_dim=12 if part.cross_attention else None, only_cross_attention=part.only_cross_attention,
        )
    )  # fmt: skip
    x, read = 0.01 * draw(2, 4, 6, 32), tokens(12)  # small, so that the epsilon of the first norm counts
    with torch.no_grad():
        given = {"encoder_hidden_states": torch.tensor(np.asarray(read.features))}
        expected = peer(nchw(x), **given if part.cross_attention else {}, return_dict=False)[0].numpy()
    module = SpatialTransformerStack(part)
    abstract = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), x, read))["params"]
    entries = list(spatial_transformer.entries("at", "there", part))
    theirs = {f"there.{key}": value for key, value in numbers(peer).items()}
    params = to_params(entries, theirs, {"at": abstract})
    close(jax.jit(module.apply)({"params": params["at"]}, x, read), expected.transpose(0, 2, 3, 1))
    back = to_tensors(entries, params)
    assert back.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(back[key], value)


def stable_diffusion(attention, **options):
    """Attention at the finest two of three levels and in the middle, as in Stable Diffusion 1."""
    levels = (Level(16, 1, attention), Level(32, 1, attention), Level(32, 1))
    block = BlockOptions(groups=8, min_group_size=1, modulation="shift")
    return UNet(
        levels, out_channels=4, block=block, middle=ResidualMiddle(attention), resampling="conv", **options
    )


@pytest.mark.slow
def test_the_unet_of_stable_diffusion_is_diffusers():
    """No attention at the coarsest level; cross-attention in the middle and in the decoder's blocks."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12, attention_head_dim=4,
    )  # fmt: skip
    randomise(peer)
    network = stable_diffusion(SpatialTransformer(heads=4, head_dim=None, groups=8))
    x, read, step = draw(2, 8, 8, 4), tokens(12), torch.tensor([3, 700])
    with torch.no_grad():
        vector = peer.time_embedding(peer.time_proj(step)).numpy()
        expected = peer(nchw(x), step, torch.tensor(np.asarray(read.features))).sample.numpy()
    given = Embeddings(jnp.asarray(vector), read)
    make = functools.partial(network.init, train=False)
    abstract = nn.meta.unbox(jax.eval_shape(make, jax.random.key(0), x, given))["params"]
    theirs = {key: value for key, value in numbers(peer).items() if not key.startswith("time_embedding")}
    params = to_params(layout.entries(network), theirs, {"network": abstract})["network"]
    run = jax.jit(functools.partial(network.apply, train=False), compiler_options=QUICK)
    close(run({"params": params}, x, given), expected.transpose(0, 2, 3, 1))


@pytest.mark.slow
def test_it_starts_as_the_identity_and_can_be_any_level_s_attention():
    part = SpatialTransformer(heads=4, head_dim=None, dropout=0.1)
    x, read = jnp.asarray(draw(2, 4, 4, 16)), tokens(12)
    module = SpatialTransformerStack(part)
    params = jax.jit(module.init)(jax.random.key(0), x, read)
    np.testing.assert_array_equal(module.apply(params, x, read), x)
    network = stable_diffusion(part, decoder_attention="last", remat=True)
    given = Embeddings(jnp.asarray(draw(2, 12)), read)
    found = jax.eval_shape(
        functools.partial(network.init, train=False), jax.random.key(0), draw(2, 8, 8, 4), given
    )["params"]
    attending = {name for name, block in found.items() if "transformer" in block}
    assert attending == {
        "encoder_0_block_0", "encoder_1_block_0", "middle_block_0", "decoder_1_block_1", "decoder_0_block_1",
    }  # fmt: skip


@pytest.mark.parametrize("twice", [False, True])
def test_a_token_that_the_mask_hides_is_not_read(twice):
    part = SpatialTransformer(heads=2, head_dim=None, only_cross_attention=twice)
    module = SpatialTransformerStack(part)
    x, features = jnp.asarray(draw(2, 4, 4, 16)), jnp.asarray(draw(2, 3, 6))
    mask = jnp.array([[True, False, True], [False, False, False]])
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), x, Tokens(features, mask)))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.2 * draw(*leaf.shape)), shapes)
    hidden = jnp.where(mask[..., None], features, 1e3)
    run = jax.jit(module.apply)
    before = run(params, x, Tokens(features, mask))
    np.testing.assert_array_equal(run(params, x, Tokens(hidden, mask)), before)
    other = run(params, x, Tokens(features + mask[..., None], mask))
    assert np.abs(other - before)[0].max() > 1e-3


@pytest.mark.slow
def test_dropout_acts_in_training_only():
    part = SpatialTransformer(heads=2, head_dim=None, dropout=0.5)
    module, x, read = SpatialTransformerStack(part), jnp.asarray(draw(2, 4, 4, 16)), tokens(6)
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), x, read))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.2 * draw(*leaf.shape)), shapes)
    train = module.clone(train=True)

    def training(seed):
        return train.apply(params, x, read, rngs={"dropout": jax.random.key(seed)})

    assert jnp.any(training(0) != training(1))
    np.testing.assert_array_equal(module.apply(params, x, read), module.apply(params, x, read))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth=0"),
        ({"heads": 2}, "heads=2.*head_dim=64"),
        ({"head_dim": None}, "heads=None"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"expansion": 0}, "expansion=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"only_cross_attention": True, "cross_attention": False}, "only_cross_attention=True"),
    ],
)
def test_impossible_transformers(change, message):
    with pytest.raises(UserError, match=f"{message}.*Fix: "):
        SpatialTransformer(**change)
    with pytest.raises(UserError, match=r"levels\[0\].width=20"):
        UNet((Level(20, attention=SpatialTransformer()),), 1)
