"""The prior of unCLIP against diffusers' `PriorTransformer`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.text import Text
from jaxdiff.config import build, describe
from jaxdiff.data.text import ByteTokenizer
from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import UserError
from jaxdiff.interop.mapping import to_params, to_tensors
from jaxdiff.interop.prior_transformer import STATISTICS, entries, prior_config, prior_layout
from jaxdiff.interop.text_encoders import clip_encoder, encoder_params
from jaxdiff.models.prior_transformer import PriorTransformer
from jaxdiff.models.unclip_text import PriorText
from tests import unclip
from tests.text_models import QUICK, assert_close

torch = pytest.importorskip("torch")
IDS = unclip.ids(5, 75, 0)
NOISY = np.random.default_rng(0).standard_normal((3, unclip.DIM), np.float32)
STEPS = np.array([0.0, 501.0, 999.0], np.float32)


def a_conditioner(layout, encoder):
    """The tokenizer stands for CLIP's, of the same length."""
    text = Text(
        ByteTokenizer(layout.length), PriorText(encoder, layout.network.width), drop_rate=0.0, null="none"
    )
    return Conditioner(layout.noise, {"text": text})


class Network(nn.Module):
    """A network with its conditioner, at steps of the model."""

    network: nn.Module
    conditioner: nn.Module

    def __call__(self, x, steps, ids):
        drop = {"text": jnp.zeros(len(ids), bool)}
        return self.network(x, self.conditioner(steps, {"text": ids}, drop), train=False)


def ours(peer, texts):
    """Our network for a peer, its parameters without the codec's, and its layout."""
    layout = prior_layout(dict(peer.config))
    encoder = clip_encoder(unclip.numbers(texts), texts.config.to_dict()).clone(pooled=True)
    network = Network(layout.network, a_conditioner(layout, encoder))
    tensors = {name: value for name, value in unclip.numbers(peer).items() if not name.startswith("clip_")}
    arguments = (jax.random.key(0), NOISY, STEPS, IDS)
    abstract = nn.meta.unbox(jax.eval_shape(network.init, *arguments))["params"]
    del abstract["conditioner"]["parts_text"]["clip"]
    params = to_params(entries(layout), tensors, abstract)
    params["conditioner"]["parts_text"]["clip"] = encoder_params(encoder, unclip.numbers(texts))
    return network, params, layout


def test_the_prediction_is_diffusers():
    peer, texts = unclip.prior(), unclip.text_encoder()
    with torch.no_grad():
        read = texts(torch.tensor(IDS, dtype=torch.long))
        mask = torch.tensor(np.arange(77)[None] <= np.array([6, 76, 1])[:, None])
        expected = peer(
            torch.tensor(NOISY), torch.tensor(STEPS), read.text_embeds, read.last_hidden_state, mask
        ).predicted_image_embedding
    network, params, _ = ours(peer, texts)
    run = jax.jit(network.apply, compiler_options=QUICK)
    assert_close(run({"params": params}, NOISY, STEPS, IDS), expected)
    padded = np.where(np.arange(77) >= 20, 7, IDS)
    changed = np.concatenate([padded[:1], IDS[1:]])
    assert_close(run({"params": params}, NOISY, STEPS, changed), expected)  # nothing of the padding is read


def test_files_come_back_bit_for_bit():
    peer = unclip.prior()
    tensors = unclip.numbers(peer)
    _, params, layout = ours(peer, unclip.text_encoder())
    del params["conditioner"]["parts_text"]["clip"]
    shape = (unclip.DIM,)
    statistics = {name: np.zeros(shape, np.float32) for name in ("mean", "std")}
    whole = to_params(entries(layout), tensors, params | {STATISTICS: statistics})
    back = to_tensors(entries(layout), whole)
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value)
    assert prior_layout(prior_config(layout)) == layout
    assert build(describe(layout.network)) == layout.network


@pytest.mark.parametrize(
    ("field", "value"),
    [("added_emb_type", None), ("norm_in_type", "layer"), ("time_embed_dim", 7), ("num_layers", "2")],
)
def test_priors_that_ours_is_not_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        prior_layout({**unclip.PRIOR, field: value})


def test_a_prior_without_texts_or_with_other_widths_is_refused():
    network = PriorTransformer(16, 1, 2)
    vector, tokens = jnp.zeros((1, 16)), Tokens(jnp.zeros((1, 3, 16)), jnp.ones((1, 3), bool))
    narrow = tokens.replace(features=tokens.features[..., :8])
    for embeddings, slot in (
        (Embeddings(tokens=tokens), "vector"),
        (Embeddings(vector=vector), "tokens"),
        (Embeddings(vector=vector, tokens=narrow), "tokens=8"),
        (Embeddings(vector=vector, tokens=tokens, spatial=jnp.zeros((1, 2, 2, 1))), "spatial"),
    ):
        with pytest.raises(UserError, match=slot):
            jax.eval_shape(
                lambda embeddings=embeddings: network.init(
                    jax.random.key(0), jnp.zeros((1, 4)), embeddings, train=False
                )
            )
    with pytest.raises(UserError, match="heads"):
        PriorTransformer(16, 1, 3)


@pytest.mark.slow
def test_remat_changes_no_value():
    network = PriorTransformer(16, 2, 2)
    embeddings = Embeddings(
        vector=jax.random.normal(jax.random.key(1), (1, 16)),
        tokens=Tokens(jax.random.normal(jax.random.key(2), (1, 3, 16)), jnp.ones((1, 3), bool)),
    )
    x = jnp.ones((1, 4))
    params = network.init(jax.random.key(0), x, embeddings, train=True)
    plain = network.apply(params, x, embeddings, train=True)
    again = network.clone(remat=True).apply(params, x, embeddings, train=True)
    np.testing.assert_allclose(again, plain, rtol=1e-6)
