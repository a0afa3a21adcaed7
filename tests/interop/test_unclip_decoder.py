"""The decoder of unCLIP, its conditions and its super-resolution networks against diffusers'."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.text import Text
from jaxdiff.conditioning.vector_embedding import EmbeddedVector
from jaxdiff.data.text import ByteTokenizer
from jaxdiff.errors import UserError
from jaxdiff.interop import diffusers as names
from jaxdiff.interop import unclip_decoder
from jaxdiff.interop.mapping import to_params, to_tensors
from jaxdiff.interop.text_encoders import clip_encoder, encoder_params
from jaxdiff.interop.unclip_decoder import decoder_config, decoder_layout, projection_config
from jaxdiff.models.unclip_text import DecoderText
from tests import unclip
from tests.text_models import QUICK, assert_close

torch = pytest.importorskip("torch")
RANDOM = np.random.default_rng(0)
IDS = unclip.ids(5, 75)
NOISY = RANDOM.standard_normal((2, 16, 16, 3), np.float32)
IMAGE = RANDOM.standard_normal((2, unclip.DIM), np.float32)
STEPS = np.array([3.0, 801.0], np.float32)


class Conditional(nn.Module):
    """A network with its conditioner, at steps of the model."""

    network: nn.Module
    conditioner: nn.Module

    def __call__(self, x, steps, fields, drop):
        return self.network(x, self.conditioner(steps, fields, drop), train=False)


def as_torch(x):
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))


def layout():
    return decoder_layout(dict(unclip.decoder().config), dict(unclip.text_proj().config))


@functools.cache
def ours():
    """Our decoder and its parameters."""
    found, texts = layout(), unclip.text_encoder()
    clip = clip_encoder(unclip.numbers(texts), texts.config.to_dict()).clone(pooled=True)
    text = Text(ByteTokenizer(77), DecoderText(clip, found.context_width, found.noise.width), drop_rate=0.1)
    image = EmbeddedVector(found.dim, found.noise.width, found.tokens, found.context_width)
    network = Conditional(
        found.network,
        Conditioner(found.noise, {"image": image, "text": text.clone(null="none", drop_rate=0.0)}),
    )
    tensors = unclip.numbers(unclip.decoder()) | unclip.numbers(unclip.text_proj())
    shapes = jax.eval_shape(network.init, jax.random.key(0), NOISY, STEPS, *given((False, False)))
    abstract = nn.meta.unbox(shapes)["params"]
    del abstract["conditioner"]["parts_text"]["clip"]
    params = to_params(all_entries(found), tensors, abstract)
    params["conditioner"]["parts_text"]["clip"] = encoder_params(clip, unclip.numbers(texts))
    return network, params


def all_entries(found):
    return [*names.entries(found.network), *unclip_decoder.projection_entries(found)]


def given(dropped):
    fields = {"image": IMAGE, "text": IDS}
    return fields, {"image": jnp.array(dropped), "text": jnp.zeros(2, bool)}


def test_the_prediction_is_diffusers_with_the_embedding_of_an_image_and_with_its_null():
    texts, project, peer = unclip.text_encoder(), unclip.text_proj(), unclip.decoder()
    with torch.no_grad():
        read = texts(torch.tensor(IDS, dtype=torch.long))
        both = {"prompt_embeds": read.text_embeds, "text_encoder_hidden_states": read.last_hidden_state}
        image = torch.tensor(IMAGE[:1])
        # The unconditional half comes first, and here it has the first text.
        tokens, vector = project(image_embeddings=image, do_classifier_free_guidance=True, **both)
        mask = torch.tensor(np.arange(77)[None] <= np.array([6, 76])[:, None])
        mask = torch.nn.functional.pad(mask, (3, 0), value=True)
        expected = peer(
            as_torch(NOISY), torch.tensor(STEPS), tokens, class_labels=vector, attention_mask=mask
        ).sample
    network, params = ours()
    fields, drop = given((True, False))
    fields["image"] = np.concatenate([IMAGE[1:], IMAGE[:1]])
    found = jax.jit(network.apply, compiler_options=QUICK)({"params": params}, NOISY, STEPS, fields, drop)
    assert_close(found, expected.numpy().transpose(0, 2, 3, 1))


def test_files_come_back_bit_for_bit():
    _, params = ours()
    params = {**params, "conditioner": {**params["conditioner"]}}
    text = params["conditioner"]["parts_text"]
    params["conditioner"]["parts_text"] = {name: tree for name, tree in text.items() if name != "clip"}
    tensors = unclip.numbers(unclip.decoder()) | unclip.numbers(unclip.text_proj())
    back = to_tensors(all_entries(layout()), params)
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value)
    config = decoder_config(layout(), 16), projection_config(layout())
    assert decoder_layout(*config) == layout()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cross_attention_norm", "layer_norm"),
        ("class_embed_type", None),
        ("down_block_types", ["DownBlock2D", "SimpleCrossAttnDownBlock2D"]),
        ("up_block_types", ["ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"]),
        ("attention_head_dim", 7),
        ("cross_attention_dim", 21),
        ("time_embedding_dim", 32),
    ],
)
def test_decoders_that_ours_is_not_are_refused(field, value):
    named = "time_embed_dim" if field == "time_embedding_dim" else field
    with pytest.raises(UserError, match=named):
        decoder_layout({**unclip.DECODER, field: value}, unclip.PROJECTION)


@pytest.mark.slow
def test_super_resolution_is_diffusers():
    """The small image is enlarged as PyTorch does: bicubic, low-passed, with its edges."""
    peer = unclip.super_res(0)
    small, noisy = (
        RANDOM.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32),
        RANDOM.standard_normal((2, 32, 32, 3)),
    )
    with torch.no_grad():
        large = torch.nn.functional.interpolate(
            as_torch(small), size=[32, 32], mode="bicubic", antialias=True
        )
        x = torch.cat([as_torch(noisy.astype(np.float32)), large], dim=1)
        expected = peer(x, torch.tensor(STEPS)).sample
    given = names.known_fields(dict(peer.config))
    low_res = ImageCondition(3, factor=2.0, method="bicubic")
    network = Conditional(names.network(given), Conditioner(names.noise_level(given), {"low_res": low_res}))
    fields, drop = {"low_res": small}, {"low_res": jnp.zeros(2, bool)}
    x = noisy.astype(np.float32)
    shapes = nn.meta.unbox(jax.eval_shape(network.init, jax.random.key(0), x, STEPS, fields, drop))["params"]
    params = to_params(names.entries(network.network), unclip.numbers(peer), shapes)
    found = jax.jit(network.apply, compiler_options=QUICK)({"params": params}, x, STEPS, fields, drop)
    assert_close(found, expected.numpy().transpose(0, 2, 3, 1))
    back = names.network_config(network.network, network.conditioner.noise, 6, 32)
    again = names.known_fields(back)
    assert names.network(again) == network.network
    assert names.noise_level(again) == network.conditioner.noise
