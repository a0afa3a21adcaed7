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
