"""T2I-Adapters against diffusers' `T2IAdapter`, and U-Nets with their features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.control import AdapterImage
from jaxdiff.config import build, describe
from jaxdiff.embeddings import Residuals
from jaxdiff.errors import UserError
from jaxdiff.interop.t2i_adapter import places_of, t2i_adapter, t2i_adapter_params, t2i_adapter_tensors
from jaxdiff.models.t2i_adapter import AdapterStage, T2IAdapter
from tests.controls import (
    X,
    a_denoiser,
    abstract,
    assert_close,
    draw,
    fields,
    nchw,
    nhwc,
    numbers,
    params_of,
    randomise,
    read_by,
    reads,
    run,
    unet_peer,
)
from tests.selection import some

IMAGE = jnp.asarray(np.abs(draw(2, 64, 96, 3, seed=5)) % 1)
KINDS = {
    "full_adapter": ("sd1", {"channels": [16, 32, 32], "num_res_blocks": 2}),
    "light_adapter": ("sd1", {"channels": [16, 32], "num_res_blocks": 3}),
    "full_adapter_xl": ("sdxl3", {"channels": [16, 32, 32, 32], "num_res_blocks": 1, "downscale_factor": 16}),
}


def a_peer(kind, **options):
    diffusers = pytest.importorskip("diffusers")
    return randomise(diffusers.T2IAdapter(adapter_type=kind, **KINDS[kind][1] | options))


def peer_features(peer, image=IMAGE):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return peer(nchw(image))


def condition(tensors, network, **options):
    adapter = t2i_adapter(tensors)
    return AdapterImage(3, factor=1 / 8, adapter=adapter, places=places_of(network, adapter), **options)


@pytest.mark.spread(2)
@pytest.mark.parametrize("kind", KINDS)
def test_the_features_are_diffusers(kind):
    peer = a_peer(kind)
    tensors = numbers(peer)
    adapter = t2i_adapter(tensors)
    params = t2i_adapter_params(adapter, tensors)
    found = jax.jit(adapter.apply)({"params": params}, IMAGE)
    for one, other in zip(found, peer_features(peer), strict=True):
        assert_close(one, nhwc(other))
    assert t2i_adapter(tensors, dict(peer.config)) == adapter
    back = t2i_adapter_tensors(adapter, params)
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", some(["full_adapter", "full_adapter_xl"], ["full_adapter"]))
def test_the_unet_with_features_is_diffusers(kind):
    """SDXL's have a level without attention, with features behind its downsampling, and one map for the middle."""
    torch = pytest.importorskip("torch")
    peer, base = a_peer(kind), KINDS[kind][0]
    scaled = [0.6 * each for each in peer_features(peer)]
    with torch.no_grad():
        expected = unet_peer(base)(
            nchw(X), down_intrablock_additional_residuals=scaled, **read_by(base)
        ).sample
    plain = a_denoiser(base)
    part = condition(numbers(peer), plain.network, scale=0.6)
    denoiser, params = a_denoiser(base, sketch=part), params_of(plain, base)
    params["conditioner"]["parts_sketch"] = t2i_adapter_params(part.adapter, numbers(peer))
    assert_close(run(denoiser, params, fields(base) | {"sketch": IMAGE}), nhwc(expected))


def test_grey_images_and_other_patches():
    grey = t2i_adapter(numbers(a_peer("full_adapter", in_channels=1)))
    assert (grey.patch, grey.light) == (8, False)
    assert t2i_adapter(numbers(a_peer("full_adapter_xl", in_channels=1))).patch == 16
    peer = a_peer("full_adapter", downscale_factor=4)
    with pytest.raises(UserError, match=r"expected patches of 64 or .*, got 48. Fix: give the config.json"):
        t2i_adapter(numbers(peer))
    adapter = t2i_adapter(numbers(peer), dict(peer.config))
    found = jax.jit(adapter.apply)({"params": t2i_adapter_params(adapter, numbers(peer))}, IMAGE)
    for one, other in zip(found, peer_features(peer), strict=True):
        assert_close(one, nhwc(other))


def test_the_condition_gives_residuals_of_its_places():
    part = condition(numbers(a_peer("light_adapter")), a_denoiser("sd1").network, scale=0.0)
    assert part.places == ("encoder_0_block_0", "encoder_1_block_0", "encoder_2_block_0")
    assert build(describe(part)) == part
    params = {"params": t2i_adapter_params(part.adapter, numbers(a_peer("light_adapter")))}
    found = jax.jit(part.apply)(params, IMAGE, jnp.zeros(2, bool)).residuals
    assert [*found.features] == [*part.places]
    assert not found.skips
    assert not any(np.any(value) for value in found.features.values())
    abstract(a_denoiser("sd1").network, reads(residuals=Residuals(found.features)))


def test_misuse_of_adapters_is_refused():
    tensors = numbers(a_peer("full_adapter"))
    adapter = t2i_adapter(tensors)
    with pytest.raises(UserError, match=r"control image=\(64, 90\): expected multiples of 32.*Fix: resize"):
        jax.eval_shape(adapter.init, jax.random.key(0), IMAGE[:, :, :90])
    with pytest.raises(UserError, match="stages=3: expected at most 2"):
        places_of(a_denoiser("sd1").network.clone(levels=a_denoiser("sd1").network.levels[:1]), adapter)
    with pytest.raises(UserError, match=r"tensors: expected those of a T2I-Adapter.*got conv_in.weight"):
        t2i_adapter({"conv_in.weight": np.zeros(1)})
    with pytest.raises(UserError, match="adapter_type='other'"):
        t2i_adapter(tensors, {"adapter_type": "other"})
    with pytest.raises(UserError, match=r"missing +body.2.resnets.0.block2.bias"):
        t2i_adapter_params(
            adapter, {k: v for k, v in tensors.items() if "body.2.resnets.0.block2.b" not in k}
        )
    with pytest.raises(UserError, match="stages"):
        T2IAdapter(())
    with pytest.raises(UserError, match="blocks=0"):
        T2IAdapter((AdapterStage(8),), blocks=0)
