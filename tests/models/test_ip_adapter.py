"""IP-Adapters against diffusers' attention processors and projections."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.image_prompt import PromptImage
from jaxdiff.config import build, describe
from jaxdiff.embeddings import Embeddings, ImagePrompt, merge
from jaxdiff.errors import UserError
from jaxdiff.interop.clip_vision import vision_encoder, vision_params
from jaxdiff.interop.ip_adapter import ip_adapter
from jaxdiff.models.clip_vision import clip_pixels
from jaxdiff.models.ip_adapter import ImageProjection, Resampler
from tests.controls import (
    X,
    a_denoiser,
    abstract,
    assert_close,
    fields,
    nchw,
    nhwc,
    numbers,
    params_of,
    read_by,
    reads,
    run,
)
from tests.image_prompts import (
    CONTEXT,
    PIXELS,
    adapted_peer,
    adapter_tensors,
    encoder_peer,
    joined,
    peer_encoding,
)

NONE, FIRST = jnp.zeros(2, bool), jnp.array([True, False])
SCALES = {"style": 0.6, "face": -1.4}


def prompted(kind, **tensors):
    """A model with IP-Adapters, and its parameters."""
    plain = a_denoiser(kind)
    params = params_of(plain, kind)
    conditions, own, network = {}, {}, params["network"]
    for name, each in tensors.items():
        adapter = ip_adapter(plain.network, each, name)
        encoder = vision_encoder(numbers(encoder_peer()), encoder_peer().config.to_dict())
        encoder = encoder.clone(layer=-2 if isinstance(adapter.projection, Resampler) else -1)
        conditions[name] = PromptImage(encoder, adapter.projection, name, SCALES[name])
        encoded = vision_params(encoder, numbers(encoder_peer()))
        own[f"parts_{name}"] = {"encoder": encoded, "projection": adapter.projection_params}
        network = joined(network, adapter.network_params)
    params = {"network": network, "conditioner": params["conditioner"] | own}
    return a_denoiser(kind, **conditions), params


def expected_of(peer, kind, image_embeds):
    torch = pytest.importorskip("torch")
    given = read_by(kind)
    given["added_cond_kwargs"] = given["added_cond_kwargs"] | {"image_embeds": image_embeds}
    with torch.no_grad():
        return nhwc(peer(nchw(X), **given).sample)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_the_unet_with_an_image_prompt_is_diffusers(kind):
    """The middle has the last number, as diffusers registers it behind the decoder."""
    tensors = adapter_tensors(kind)
    vector = peer_encoding().image_embeds
    denoiser, params = prompted(kind, style=tensors)
    peer = adapted_peer(kind, tensors, scales=[SCALES["style"]])
    found = run(denoiser, params, fields(kind) | {"style": PIXELS})
    assert_close(found, expected_of(peer, kind, [vector[:, None]]))
    plain = run(a_denoiser(kind), params_of(a_denoiser(kind), kind), fields(kind))
    assert np.abs(found - plain).max() > 0.05 * np.abs(plain).max()
    dropped = vector.clone()
    dropped[0] = 0
    found = run(denoiser, params, fields(kind) | {"style": PIXELS}, style=FIRST)
    assert_close(found, expected_of(peer, kind, [dropped[:, None]]))


@pytest.mark.slow
def test_a_plain_and_a_plus_adapter_act_side_by_side():
    torch = pytest.importorskip("torch")
    style, face = adapter_tensors("sd1"), adapter_tensors("sd1", plus=True, seed=3)
    encoding = peer_encoding()
    states = encoding.hidden_states[-2]
    peer = adapted_peer("sd1", style, face, scales=list(SCALES.values()))
    denoiser, params = prompted("sd1", style=style, face=face)
    given = fields("sd1") | {"style": PIXELS, "face": PIXELS}
    expected = expected_of(peer, "sd1", [encoding.image_embeds[:, None], states[:, None]])
    assert_close(run(denoiser, params, given), expected)
    # Without an image, the plus adapter reads the states of an image of zeros.
    zeros = torch.cat([peer_encoding(jnp.zeros_like(PIXELS)).hidden_states[-2][:1], states[1:]])
    expected = expected_of(peer, "sd1", [encoding.image_embeds[:, None], zeros[:, None]])
    assert_close(run(denoiser, params, given, face=FIRST), expected)


@pytest.mark.slow
def test_an_image_prompt_at_scale_0_changes_no_bit():
    plain = a_denoiser("sd1")
    expected = run(plain, params_of(plain, "sd1"), fields("sd1"))
    denoiser, params = prompted("sd1", style=adapter_tensors("sd1"))
    part = denoiser.conditioner.conditions["style"].clone(scale=0.0)
    found = run(a_denoiser("sd1", style=part), params, fields("sd1") | {"style": PIXELS})
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_the_condition_reads_images_of_any_size():
    denoiser, _ = prompted("sd1", style=adapter_tensors("sd1"))
    part = denoiser.conditioner.conditions["style"].clone(name=None)
    assert build(describe(part)) == part
    image = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    part.check(part.read(list(image)))
    keys = jax.random.split(jax.random.key(0), 2)
    drawn = part.draw(jnp.asarray(image), keys, train=False)
    np.testing.assert_array_equal(drawn, clip_pixels(jnp.asarray(image, jnp.float32) / 255, 8))
    assert part.draw(drawn, keys, train=True) is drawn
    assert part.example(3).shape == (3, 8, 8, 3)
    for wrong in (image[..., :1], image / 255, image[0], image[:, :0]):
        with pytest.raises(UserError, match=r"face=.*expected images uint8 \[n, height, width, 3\]"):
            part.check(wrong, "face")
    with pytest.raises(UserError, match="null='learned': expected one of zero, none"):
        part.clone(null="learned")
    with pytest.raises(UserError, match="scale=nan"):
        part.clone(scale=float("nan"))


def test_two_adapters_of_one_name_are_refused():
    one = Embeddings(image_prompts={"image": ImagePrompt(jnp.zeros((2, 4, 12)), jnp.ones(2))})
    with pytest.raises(UserError, match="image_prompts: expected different names, got 'image' from 2"):
        merge([one, one])


def test_keys_and_values_have_the_shapes_of_the_network():
    network = a_denoiser("sdxl").network
    adapter = ip_adapter(network, adapter_tensors("sdxl"), "a")
    prompt = {"a": ImagePrompt(jnp.zeros((2, 4, CONTEXT)), jnp.ones(2))}
    with_prompt, without = (
        nn.meta.unbox(abstract(network, reads(image_prompts=each)))["params"] for each in (prompt, None)
    )
    size = sum(map(np.size, jax.tree.leaves(adapter.network_params)))
    assert count(with_prompt) - count(without) == size
    expected = joined(jax.tree.map(np.shape, without), jax.tree.map(np.shape, adapter.network_params))
    assert jax.tree.map(np.shape, with_prompt) == expected


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (("proj.0.weight", "proj.3.weight"), "got full-face"),
        (("proj.0.weight", "norm.weight"), "got FaceID:"),
        (("proj.0.weight", "perceiver_resampler.proj_in.weight"), "got FaceID plus"),
        (("other",), "got another projection: image_proj with other"),
        ((), "got another projection: image_proj with none"),
    ],
)
def test_other_projections_are_refused(image, message):
    tensors = {f"image_proj.{name}": np.zeros(1) for name in image}
    with pytest.raises(UserError, match=f"{message}.*Fix: use an IP-Adapter with image_proj.proj.weight"):
        ip_adapter(a_denoiser("sd1").network, tensors)


def test_files_that_do_not_fit_are_refused():
    network, tensors = a_denoiser("sd1").network, adapter_tensors("sd1")
    with pytest.raises(UserError, match=r"missing +ip_adapter.13.to_v_ip.weight"):
        ip_adapter(network, {k: v for k, v in tensors.items() if k != "ip_adapter.13.to_v_ip.weight"})
    with pytest.raises(UserError, match=r"not read +ip_adapter.15.to_k_ip.weight"):
        ip_adapter(network, tensors | {"ip_adapter.15.to_k_ip.weight": np.zeros(1)})
    with pytest.raises(UserError, match=r"not read +proj.lora"):
        ip_adapter(network, tensors | {"image_proj.proj.lora": np.zeros(1)})
    for module, given in (
        (ImageProjection(8), Embeddings()),
        (Resampler(8), Embeddings(vector=jnp.zeros((1, 3)))),
    ):
        with pytest.raises(UserError, match="projection: expected an encoder that gives"):
            module.init(jax.random.key(0), given)
