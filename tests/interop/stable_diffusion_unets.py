"""Small U-Nets of Stable Diffusion's layouts in diffusers, and our denoisers with the conditions that they need."""

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
from jaxdiff.conditioning.vector import ClassLabel
from jaxdiff.denoiser import Denoiser
from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.labels import StepIndex
from jaxdiff.process.prediction import Noise
from jaxdiff.process.table import ScaledLinearBetas, Table

os.environ["HF_HUB_OFFLINE"] = "1"


def blocks(attends):
    """Types of blocks for levels that attend (1) or not (0), the finest first."""
    down = ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends]
    up = ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)]
    return {"down_block_types": down, "up_block_types": up}


SD1 = blocks([1, 1, 0]) | {
    "sample_size": 8, "norm_num_groups": 8, "layers_per_block": 1, "cross_attention_dim": 12,
    "block_out_channels": [16, 32, 32], "attention_head_dim": 4,
}  # fmt: skip
SD2 = SD1 | {
    "block_out_channels": [16, 32, 64], "attention_head_dim": [2, 4, 8], "use_linear_projection": True,
}  # fmt: skip
SIZES = {"addition_embed_type": "text_time", "addition_time_embed_dim": 16}
TINY = {
    "sd1": SD1,
    "sd1_inpaint": SD1 | {"in_channels": 9},
    "instruct_pix2pix": SD1 | {"in_channels": 8},
    "sd2": SD2,
    "upscaler": SD1 | blocks([0, 1, 1, 1]) | {
        "block_out_channels": [16, 32, 32, 48], "in_channels": 7, "use_linear_projection": True,
        "only_cross_attention": [True, True, True, False], "num_class_embeds": 20,
    },
    "sdxl": SD2 | SIZES | blocks([0, 1, 1]) | {
        "transformer_layers_per_block": [1, 2, 3], "projection_class_embeddings_input_dim": 10 + 6 * 16,
    },
    "refiner": SD2 | SIZES | blocks([0, 1, 1, 0]) | {
        "block_out_channels": [16, 32, 64, 64], "attention_head_dim": [2, 4, 8, 8],
        "transformer_layers_per_block": 2, "projection_class_embeddings_input_dim": 10 + 5 * 16,
    },
    "unclip": SD2 | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 10},
    "consistency": SD1 | {"time_cond_proj_dim": 6},
    "every_option": blocks([1, 1]) | {
        "norm_num_groups": 4, "layers_per_block": [1, 2], "block_out_channels": [16, 24], "cross_attention_dim": [8, 8],
        "attention_head_dim": [1, 6], "out_channels": 6, "resnet_time_scale_shift": "scale_shift", "norm_eps": 1e-3,
        "downsample_padding": 0, "freq_shift": 1, "flip_sin_to_cos": False, "time_embedding_dim": 20,
        "transformer_layers_per_block": [2, 1], "reverse_transformer_layers_per_block": [1, 2], "act_fn": "swish",
        "mid_block_only_cross_attention": True, "only_cross_attention": True, "upcast_attention": True,
    },
}  # fmt: skip
"""By name, the config of a small network of each published layout; attention where the published one has it."""

ORIGINAL = [name for name in TINY if name not in ("consistency", "every_option")]
"""The layouts that original single files have."""

WIDE = {"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "norm_num_groups": 32}
SD1_WIDE = SD1 | WIDE | blocks([1, 1, 1, 0]) | {"attention_head_dim": 8, "cross_attention_dim": 768}
SD2_WIDE = SD1_WIDE | {
    "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True, "cross_attention_dim": 1024,
}  # fmt: skip
SIZES_WIDE = SIZES | {"addition_time_embed_dim": 256}
PUBLISHED = {
    "sd1": SD1_WIDE,
    "sd1_inpaint": SD1_WIDE | {"in_channels": 9},
    "instruct_pix2pix": SD1_WIDE | {"in_channels": 8},
    "sd2": SD2_WIDE,
    "upscaler": SD2_WIDE | blocks([0, 1, 1, 1]) | {
        "block_out_channels": [256, 512, 512, 1024], "attention_head_dim": 8, "num_class_embeds": 1000,
        "only_cross_attention": [True, True, True, False], "in_channels": 7,
    },
    "sdxl": SD2_WIDE | SIZES_WIDE | blocks([0, 1, 1]) | {
        "block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
        "transformer_layers_per_block": [1, 2, 10], "projection_class_embeddings_input_dim": 2816,
    },
    "refiner": SD2_WIDE | SIZES_WIDE | blocks([0, 1, 1, 0]) | {
        "block_out_channels": [384, 768, 1536, 1536], "attention_head_dim": [6, 12, 24, 24],
        "transformer_layers_per_block": 4, "cross_attention_dim": 1280, "projection_class_embeddings_input_dim": 2560,
    },
    "unclip": SD2_WIDE | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2048},
    "consistency": SD1_WIDE | {"time_cond_proj_dim": 256},
}  # fmt: skip
"""By name, the config of the published networks."""


PATHS = {"noise_table": "conditioner/parts_level/table", "guidance": "scale"}
"""Where the denoisers of `denoiser_of` have what is not at the same place in every denoiser."""


@functools.cache
def peer(name):
    """A small network of diffusers with random values for all parameters."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.UNet2DConditionModel(**TINY[name]).eval()
    generator = torch.Generator().manual_seed(0)
    for key, value in model.named_parameters():
        gain = "norm" in key and key.endswith("weight")
        value.data = float(gain) + 0.1 * torch.randn(value.shape, generator=generator)
    return model


def numbers(model):
    return {key: value.detach().numpy() for key, value in model.state_dict().items()}


class Encoded(Condition):
    """What text encoders and autoencoders give: tokens, and a vector or spatial channels where there are any."""

    context_width: int
    vector_width: int | None = None
    channels: int = 0

    def __call__(self, values, drop):
        tokens = values["tokens"]
        return Embeddings(
            vector=values.get("vector"),
            tokens=Tokens(tokens, jnp.ones(tokens.shape[:2], bool)),
            spatial=values.get("spatial"),
        )

    @nn.nowrap
    def example(self, batch, data_shape=None):
        values = {"tokens": jnp.zeros((batch, 5, self.context_width))}
        if self.vector_width:
            values["vector"] = jnp.zeros((batch, self.vector_width))
        if self.channels:
            values["spatial"] = jnp.zeros((batch, *data_shape[:2], self.channels))
        return values


def denoiser_of(layout, pooled=10, channels=4):
    """The denoiser of a layout and all its conditions, for a pooled text of this length."""
    sizes, vector = {}, layout.mapped_width
    if layout.mapped == "text_time":
        numbers = (layout.mapped_width - pooled) // (2 * layout.size_frequencies)
        counts = {
            "original_size": 2,
            "crop": 2,
            **{6: {"target_size": 2}, 5: {"aesthetic_score": None}}[numbers],
        }
        options = {"width": None, "frequencies": layout.size_frequencies}
        sizes = {name: Continuous(size=count, **options) for name, count in counts.items()}
        vector = pooled
    conditions = {"text": Encoded(layout.context_width, vector, layout.in_channels - channels), **sizes}
    if layout.noise_classes:
        conditions["level"] = ClassLabel(layout.noise_classes, layout.noise.width, drop_rate=0.0, null="none")
    if layout.guidance_width:
        width = 2 * layout.noise.frequencies
        conditions["scale"] = Continuous(size=layout.guidance_width, width=width, before_mapping=True)
    concatenated = ("text", *sizes) if layout.mapping else ()
    conditioner = Conditioner(layout.noise, conditions, concatenated, layout.mapping)
    return Denoiser(
        layout.network, conditioner, VariancePreserving(Table(ScaledLinearBetas())), Noise(StepIndex(1000))
    )


def shapes(denoiser, side=16, channels=4):
    """The shapes of all parameters."""
    conditioner, shape = denoiser.conditioner, (side, side, channels)
    given = conditioner.example(1, shape), conditioner.none_dropped(1)
    make = functools.partial(denoiser.init, train=False)
    boxed = jax.eval_shape(make, jax.random.key(0), jnp.zeros((1, *shape)), jnp.full((1,), 0.5), *given)
    return nn.meta.unbox(boxed)["params"]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)
