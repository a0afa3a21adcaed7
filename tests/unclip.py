"""Tiny networks of unCLIP in diffusers and transformers with random weights, and whole pipelines of them."""

import functools

import numpy as np
import pytest

from tests.pipelines import text_config
from tests.text_models import randomise

DIM = 64
"""Length of CLIP's embeddings, and channels of its states."""

TEXT = text_config(2, "quick_gelu")
PRIOR = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "embedding_dim": DIM}


@functools.cache
def text_encoder():
    transformers = pytest.importorskip("transformers")
    return randomise(transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**TEXT)), 0.1)


@functools.cache
def prior():
    diffusers = pytest.importorskip("diffusers")
    return randomise(diffusers.PriorTransformer(**PRIOR), 0.1)


def numbers(module):
    """The tensors of a module."""
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def ids(*texts, length=77):
    """Ids of CLIP's tokenizer for texts of these numbers of words, padded with the end as in OpenAI's models."""
    last = TEXT["eos_token_id"]
    rows = np.full((len(texts), length), last, np.int32)
    for row, count in zip(rows, texts, strict=True):
        row[: count + 1] = [TEXT["bos_token_id"], *range(3, 3 + count)]
    return rows


DECODER = {
    "sample_size": 16, "in_channels": 3, "out_channels": 6, "block_out_channels": (16, 32), "layers_per_block": 1,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), "norm_num_groups": 8,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "cross_attention_dim": 20, "attention_head_dim": 8,
    "resnet_time_scale_shift": "scale_shift", "class_embed_type": "identity",
}  # fmt: skip
PROJECTION = {
    "clip_extra_context_tokens": 3, "clip_embeddings_dim": DIM, "time_embed_dim": 64, "cross_attention_dim": 20,
}  # fmt: skip
SUPER_RES = {
    "sample_size": 32, "in_channels": 6, "out_channels": 3, "block_out_channels": (16, 32), "layers_per_block": 1,
    "down_block_types": ("ResnetDownsampleBlock2D",) * 2, "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
    "norm_num_groups": 8, "add_attention": False, "resnet_time_scale_shift": "scale_shift",
}  # fmt: skip


@functools.cache
def decoder():
    diffusers = pytest.importorskip("diffusers")
    return randomise(diffusers.UNet2DConditionModel(**DECODER), 0.1)


@functools.cache
def text_proj():
    pytest.importorskip("diffusers")
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    return randomise(UnCLIPTextProjModel(**PROJECTION), 0.1)


@functools.cache
def super_res(seed):
    diffusers = pytest.importorskip("diffusers")
    import torch

    module = randomise(diffusers.UNet2DModel(**SUPER_RES), 0.1)
    with torch.no_grad():
        for value in module.parameters():
            value.mul_(1 - 0.3 * seed)
    return module
