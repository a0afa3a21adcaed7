"""Tiny U-Nets of Stable Diffusion 1 and SDXL, ours and those of diffusers, for tests of what controls them."""

import functools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.condition import Condition
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.vector import NoiseLevel, VectorMlp
from jaxdiff.denoiser import Denoiser
from jaxdiff.embeddings import Embeddings, Tokens, VectorInputs
from jaxdiff.interop import diffusers as layout
from jaxdiff.interop.mapping import dense, to_params
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.spatial_transformer import SpatialTransformer
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.labels import StepIndex
from jaxdiff.process.prediction import Noise
from jaxdiff.process.table import ScaledLinearBetas, Table

os.environ["HF_HUB_OFFLINE"] = "1"

QUICK = {"xla_backend_optimization_level": 0}
POOLED, SIZES = 10, 4
COMMON = {"norm_num_groups": 8, "layers_per_block": 1, "cross_attention_dim": 12}
PEERS = {
    "sd1": {
        "block_out_channels": (16, 32, 32), "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    },
    "sdxl": {
        "block_out_channels": (16, 32), "attention_head_dim": (2, 4), "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "addition_embed_type": "text_time", "addition_time_embed_dim": SIZES,
        "projection_class_embeddings_input_dim": POOLED + 6 * SIZES,
    },
}  # fmt: skip
PEERS["sdxl3"] = PEERS["sdxl"] | {
    "block_out_channels": (16, 32, 32), "attention_head_dim": (2, 4, 4), "transformer_layers_per_block": (1, 2, 2),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
}  # fmt: skip
UP = {
    "sd1": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "sdxl": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "sdxl3": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
SD1 = SpatialTransformer(heads=4, head_dim=None, groups=8)
SDXL = SpatialTransformer(depth=2, heads=4, head_dim=None, linear_projection=True, groups=8)
LEVELS = {
    "sd1": (Level(16, 1, SD1), Level(32, 1, SD1), Level(32, 1)),
    "sdxl": (Level(16, 1), Level(32, 1, SDXL)),
    "sdxl3": (Level(16, 1), Level(32, 1, SDXL), Level(32, 1, SDXL)),
}
STEPS = np.array([3, 700])
TIMES = jnp.asarray((STEPS + 1) / 1000, jnp.float32)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


class GivenTokens(Condition):
    """Tokens as they are given."""

    width: int = 12

    def __call__(self, values, drop):
        return Embeddings(tokens=Tokens(values, jnp.ones(values.shape[:2], bool)))

    def example(self, batch, data_shape=None):
        return jnp.zeros((batch, 7, self.width))


def a_denoiser(kind, **conditions):
    """A model whose tokens, and for SDXL whose pooled vector and sizes, are given."""
    options = BlockOptions(groups=8, min_group_size=1, modulation="shift")
    middle = ResidualMiddle(LEVELS[kind][1].attention)
    network = UNet(LEVELS[kind], 4, block=options, middle=middle, resampling="conv")
    noise, conditions = NoiseLevel(64, frequencies=8), {"text": GivenTokens(), **conditions}
    if kind == "sd1":
        conditioner = Conditioner(noise, conditions)
    else:
        sizes = Continuous(6, None, frequencies=SIZES // 2)
        conditions |= {"pooled": Continuous(POOLED, None), "sizes": sizes}
        conditioner = Conditioner(noise, conditions, ("pooled", "sizes"), VectorMlp(64))
    process = VariancePreserving(Table(ScaledLinearBetas()))
    return Denoiser(network, conditioner, process, Noise(label=StepIndex(1000)))


def fields(kind):
    """Values of the conditions of `a_denoiser`."""
    given = {"text": draw(2, 7, 12, seed=2)}
    if kind != "sd1":
        sizes = np.array([[64, 48, 0, 0, 64, 48], [32, 64, 8, 3, 32, 32]], np.float32)
        given |= {"pooled": draw(2, POOLED, seed=3), "sizes": sizes}
    return given


def randomise(module, seed=0):
    """Random values for all parameters: zero-initialised layers would hide all others."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        gain = "norm" in name and name.endswith("weight")
        value.data = float(gain) + 0.15 * torch.randn(value.shape, generator=generator)
    return module.eval()


@functools.cache
def unet_peer(kind):
    """diffusers' U-Net; a test that changes it must copy it."""
    diffusers = pytest.importorskip("diffusers")
    return randomise(
        diffusers.UNet2DConditionModel(sample_size=8, up_block_types=UP[kind], **COMMON, **PEERS[kind])
    )


@functools.cache
def control_peer(kind, seed=0, **options):
    diffusers = pytest.importorskip("diffusers")
    options = {"conditioning_embedding_out_channels": (4, 8, 8, 12)} | options
    return randomise(diffusers.ControlNetModel(**COMMON, **PEERS[kind] | options), seed + 1)


def numbers(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def nchw(x):
    torch = pytest.importorskip("torch")
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))


def nhwc(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def read_by(kind):
    """The arguments of diffusers' networks for the values of `fields`."""
    torch = pytest.importorskip("torch")
    given = {name: torch.tensor(value) for name, value in fields(kind).items()}
    added = {"text_embeds": given["pooled"], "time_ids": given["sizes"]} if kind != "sd1" else {}
    return {
        "timestep": torch.tensor(STEPS), "encoder_hidden_states": given["text"], "added_cond_kwargs": added,
    }  # fmt: skip


def entries(network):
    yield from layout.entries(network)
    for i in range(2):
        yield from dense(f"conditioner/mapping/dense_{i}", f"add_embedding.linear_{i + 1}")


def params_of(denoiser, kind):
    """The peer's parameters in `a_denoiser`'s tree."""
    return to_params(entries(denoiser.network), numbers(unet_peer(kind)), shapes(denoiser, kind))


def shapes(denoiser, kind, **more):
    given = {**fields(kind), **more}
    return nn.meta.unbox(jax.eval_shape(_init(denoiser), X, given))["params"]


def _init(denoiser):
    return lambda x, given: denoiser.init(
        jax.random.key(0), x, TIMES, given, denoiser.conditioner.none_dropped(2), train=False
    )


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def run(denoiser, params, given, **dropped):
    """The network's output for noisy data `X` at `STEPS`."""
    drop = denoiser.conditioner.none_dropped(2) | dropped
    return denoiser.apply({"params": params}, X, TIMES, given, drop, train=False)


def tokens():
    return Tokens(jnp.asarray(fields("sd1")["text"]), jnp.ones((2, 7), bool))


def reads(**slots):
    """Embeddings as a network receives them."""
    inputs = VectorInputs(jnp.zeros(2))
    return Embeddings(vector=jnp.zeros((2, 64)), tokens=tokens(), vector_inputs=inputs).replace(**slots)


def abstract(network, embeddings):
    """The shapes of a network's parameters: nothing is compiled."""
    make = functools.partial(network.init, train=False)
    return jax.eval_shape(make, jax.random.key(0), X, embeddings)


def assert_close(found, expected):
    """Float32 agrees with float32: at most 1e-4 of the largest value, and 1e-5 on average."""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    error = found - expected
    assert found.shape == expected.shape
    assert np.abs(error).max() <= 1e-4 * np.abs(expected).max()
    assert np.sqrt(np.mean(error**2) / np.mean(expected**2)) <= 1e-5


X = jnp.asarray(draw(2, 8, 12, 4, seed=1))
