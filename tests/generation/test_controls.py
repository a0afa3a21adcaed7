"""Published controls in a generator: one step of sampling is diffusers' prediction of the clean data."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdiff.codecs.identity import Identity
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.errors import UserError
from jaxdiff.generation.controls import with_control_net, with_ip_adapter, with_t2i_adapter
from jaxdiff.generation.generator import Generator
from jaxdiff.interop.control_net import control_net, control_net_params, control_net_tensors
from jaxdiff.models.clip_vision import clip_pixels
from jaxdiff.sampling.grids.continuous import Uniform
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ddim import Ddim
from tests.controls import (
    X,
    a_denoiser,
    assert_close,
    control_peer,
    fields,
    nchw,
    nhwc,
    numbers,
    params_of,
    randomise,
    read_by,
)
from tests.image_prompts import adapted_peer, adapter_tensors, encoder_peer, grouped, peer_encoding

IMAGE = np.random.default_rng(3).integers(0, 256, (2, 8, 12, 3), np.uint8)


@functools.cache
def peers():
    """A ControlNet and a T2I-Adapter whose images have the size of the data."""
    diffusers = pytest.importorskip("diffusers")
    adapter = diffusers.T2IAdapter(channels=[16, 32, 32], downscale_factor=1)
    return control_peer("sd1", conditioning_embedding_out_channels=(8,)), randomise(adapter)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("controls")
    for name, peer in zip(("edges", "sketch", "encoder"), (*peers(), encoder_peer()), strict=True):
        peer.save_pretrained(folder / name)
    theirs = numbers(peers()[0])
    network = control_net(a_denoiser("sd1"), theirs)
    original = control_net_tensors(network, control_net_params(network, theirs), "original")
    save_file(original | {"model.diffusion_model.out.2.bias": np.zeros(4)}, folder / "original.safetensors")
    torch.save(grouped(adapter_tensors("sd1")), folder / "style.bin")
    save_file(adapter_tensors("sd1"), folder / "style.safetensors")
    save_file(adapter_tensors("sd1", plus=True), folder / "plus.safetensors")
    return folder


@functools.cache
def a_generator():
    denoiser = a_denoiser("sd1")
    recipe = Recipe(Ddim(), Uniform(), ClassifierFree(), 1)
    mesh = MeshShape().make(jax.devices()[:1])
    params = jax.tree.map(jnp.asarray, params_of(denoiser, "sd1"))
    return Generator(denoiser, params, recipe, X.shape[1:], mesh, codec=Identity())


def clean_data(generator, eps):
    """x_0 by a prediction of the noise at the first time."""
    alpha, sigma = generator.denoiser.process.signal(jnp.float32(1))
    return (sigma * X - sigma * eps) / alpha


@pytest.mark.slow
def test_samples_with_all_controls_are_diffusers(files):
    torch = pytest.importorskip("torch")
    generator = with_control_net(a_generator(), "edges", files / "edges", scale=0.7)
    generator = with_t2i_adapter(generator, "sketch", files / "sketch", scale=0.4)
    generator = with_ip_adapter(generator, "style", files / "style.bin", files / "encoder", scale=0.6)
    given = {"edges": IMAGE, "sketch": IMAGE[::-1], "style": IMAGE}
    found = generator(noise=np.asarray(X), text=fields("sd1")["text"], **given)
    control, adapter = peers()
    read = read_by("sd1") | {"timestep": torch.tensor([999, 999])}
    _, sigma = generator.denoiser.process.signal(jnp.float32(1))
    x, image = nchw(sigma * X), nchw(IMAGE.astype(np.float32) / 255)
    vector = peer_encoding(clip_pixels(jnp.asarray(IMAGE, jnp.float32) / 255, 8)).image_embeds
    with torch.no_grad():
        down, middle = control(x, controlnet_cond=image, conditioning_scale=0.7, return_dict=False, **read)
        features = [0.4 * each for each in adapter(image.flip(0))]
        eps = adapted_peer("sd1", adapter_tensors("sd1"), scales=[0.6])(
            x, down_block_additional_residuals=down, mid_block_additional_residual=middle,
            down_intrablock_additional_residuals=features,
            **read | {"added_cond_kwargs": {"image_embeds": [vector[:, None]]}},
        ).sample  # fmt: skip
    assert_close(found, clean_data(generator, nhwc(eps)))


@pytest.mark.slow
def test_controls_join_a_model_that_has_some(files):
    one = with_control_net(a_generator(), "edges", files / "edges")
    two = with_control_net(one, "depth", files / "edges", scale=-1.0)
    plain = a_generator()(noise=np.asarray(X), text=fields("sd1")["text"])
    found = two(noise=np.asarray(X), text=fields("sd1")["text"], edges=IMAGE, depth=IMAGE)
    np.testing.assert_allclose(found, plain, atol=1e-3 * np.abs(plain).max())  # opposite scales
    other = with_control_net(one, "depth", files / "original.safetensors", scale=-1.0)
    jax.tree.map(np.testing.assert_array_equal, other.params, two.params)
    assert other.denoiser == two.denoiser
    assert {*two.params["network"]} - {*one.params["network"]} == {"controls_depth"}
    assert "controls_edges" not in a_generator().params["network"]
    again = with_ip_adapter(two, "style", files / "style.safetensors", files / "encoder")
    bins = with_ip_adapter(two, "style", files / "style.bin", files / "encoder")
    jax.tree.map(np.testing.assert_array_equal, again.params, bins.params)
    plus = with_ip_adapter(again, "face", files / "plus.safetensors", files / "encoder")
    assert plus.denoiser.conditioner.conditions["face"].encoder.layer == -2


@pytest.mark.slow
def test_misuse_is_refused(files):
    generator = with_control_net(a_generator(), "edges", files / "edges")
    text = fields("sd1")["text"]
    for add in (with_control_net, with_t2i_adapter):
        with pytest.raises(UserError, match="name='text': expected a new name"):
            add(a_generator(), "text", files / {with_control_net: "edges"}.get(add, "sketch"))
    with pytest.raises(UserError, match="edges=: expected a value"):
        generator(text=text)
    with pytest.raises(UserError, match=r"edges=.*expected uint8, or floats between 0 and 1, got -1 to 1"):
        generator(text=text, edges=np.linspace(-1, 1, IMAGE.size).reshape(IMAGE.shape))
    with pytest.raises(UserError, match=r"tensors: expected those of a ControlNet"):
        with_control_net(a_generator(), "new", files / "sketch")
    with pytest.raises(UserError, match=r"tensors: expected those of a T2I-Adapter"):
        with_t2i_adapter(a_generator(), "new", files / "edges")
    with pytest.raises(UserError, match=r"tensors: expected an IP-Adapter"):
        with_ip_adapter(
            a_generator(), "new", files / "edges/diffusion_pytorch_model.safetensors", files / "encoder"
        )
    with pytest.raises(UserError, match=r"nothing.*Fix: "):
        with_control_net(a_generator(), "new", files / "nothing")
    other = dataclasses.replace(
        a_generator(), denoiser=a_denoiser("sd1").clone(network=a_denoiser("sd1").conditioner)
    )
    with pytest.raises(UserError, match="network=Conditioner: expected a UNet"):
        with_ip_adapter(other, "new", files / "style.bin", files / "encoder")
