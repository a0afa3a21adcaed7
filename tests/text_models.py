"""Small text encoders of transformers with random parameters, and how closely ours must agree with them."""

import functools
import os

import jax
import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

QUICK = {"xla_backend_optimization_level": 0}
CLIP = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 12, "projection_dim": 20, "eos_token_id": 97, "bos_token_id": 96, "pad_token_id": 0,
}  # fmt: skip
T5 = {
    "vocab_size": 99, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 3, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-3,
}  # fmt: skip
# Ends (97) at different positions, before, behind and without padding; 98 is a token that was added after the end.
IDS = np.array(
    [
        [96, 5, 7, 97, 0, 0, 0, 0, 0, 0, 0, 0],
        [96, 98, 3, 3, 97, 97, 97, 97, 97, 97, 97, 97],
        [96, 1, 2, 3, 4, 5, 6, 7, 8, 9, 98, 97],
    ],
    np.int32,
)


def randomise(model, spread=0.2):
    """Random values for all parameters, those of norms and biases too; the same for the same model."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        gain = "norm" in name and name.endswith("weight")
        value.data = float(gain) + spread * torch.randn(value.shape, generator=generator)
    return model.eval()


@functools.cache
def clip_peer(activation="quick_gelu", projects=True, **options):
    """A `CLIPTextModelWithProjection`, or a `CLIPTextModel`."""
    transformers = pytest.importorskip("transformers")
    kind = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
    return randomise(kind(transformers.CLIPTextConfig(**CLIP | {"hidden_act": activation} | options)))


@functools.cache
def t5_peer(**options):
    """A `T5EncoderModel`."""
    transformers = pytest.importorskip("transformers")
    return randomise(transformers.T5EncoderModel(transformers.T5Config(**T5 | options)))


def numbers(model):
    """The tensors of a model of transformers."""
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def run(encoder, params, ids):
    return encoder.apply({"params": params}, ids)


def assert_close(found, expected):
    """Float32 agrees with float32: at most 1e-4 of the largest value, and 1e-5 on average."""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    error = found - expected
    assert np.abs(error).max() <= 1e-4 * np.abs(expected).max()
    assert np.sqrt(np.mean(error**2) / np.mean(expected**2)) <= 1e-5
