"""Files of ControlNets in the names of diffusers and of the original code."""

import jax
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.interop.control_net import control_net, control_net_params, control_net_tensors
from jaxdiff.models.control_net import Controlled
from tests.controls import a_denoiser, control_peer, numbers

SD1, SDXL = a_denoiser("sd1"), a_denoiser("sdxl")


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def assert_same_trees(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_diffusers_files_come_back_bit_for_bit(kind):
    theirs = numbers(control_peer(kind))
    network = control_net(a_denoiser(kind), theirs)
    assert_same(control_net_tensors(network, control_net_params(network, theirs)), theirs)


def test_original_files_are_those_that_diffusers_converts():
    single_file_utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    torch = pytest.importorskip("torch")
    theirs = numbers(control_peer("sd1"))
    network = control_net(SD1, theirs)
    params = control_net_params(network, theirs)
    original = control_net_tensors(network, params, "original")
    assert all(name.startswith("control_model.") for name in original)
    given = {name: torch.tensor(value) for name, value in original.items()}
    converted = single_file_utils.convert_controlnet_checkpoint(given, {"layers_per_block": 1})
    assert_same({name: value.numpy() for name, value in converted.items()}, theirs)
    whole = {"model.diffusion_model.out.2.bias": np.zeros(4), "cond_stage_model.x": np.zeros(3), **original}
    for file in (whole, {name.removeprefix("control_model."): value for name, value in original.items()}):
        assert control_net(SD1, file) == network
        assert_same_trees(control_net_params(network, file), params)


def test_the_original_names_of_sdxl_have_the_vectors_mapping():
    theirs = numbers(control_peer("sdxl"))
    network = control_net(SDXL, theirs)
    params = control_net_params(network, theirs)
    original = control_net_tensors(network, params, "original")
    np.testing.assert_array_equal(
        original["control_model.label_emb.0.2.weight"], theirs["add_embedding.linear_2.weight"]
    )
    assert control_net(SDXL, original) == network
    assert_same_trees(control_net_params(network, original), params)


def test_smaller_control_nets_of_sdxl():
    """Those called "mid" have fewer transformers. Those called "small" have another middle."""
    theirs = numbers(control_peer("sdxl", transformer_layers_per_block=(1, 1)))
    network = control_net(SDXL, theirs)
    parts = [*(level.attention for level in network.network.levels), network.network.middle.attention]
    assert [part and part.depth for part in parts] == [None, 1, 1]
    assert_same(control_net_tensors(network, control_net_params(network, theirs)), theirs)
    small = {"down_block_types": ("DownBlock2D",) * 2, "mid_block_type": "UNetMidBlock2D"}
    with pytest.raises(UserError, match="expected two residual blocks in the middle, got one"):
        control_net(SDXL, numbers(control_peer("sdxl", **small)))


def test_the_hint_encoder_has_the_widths_of_the_file():
    theirs = numbers(control_peer("sd1", conditioning_embedding_out_channels=(4, 6, 8)))
    network = control_net(SD1, theirs)
    assert network.hint_widths == (4, 6, 8)
    assert network.factor == 4
    control_net_params(network, theirs)


def test_a_model_with_control_nets_takes_further_ones():
    network = control_net(SD1, numbers(control_peer("sd1")))
    controlled = SD1.clone(network=Controlled(SD1.network, {"edges": network}))
    assert control_net(controlled, numbers(control_peer("sd1"))) == network


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"global_pool_conditions": True}, "global_pool_conditions=True: expected False"),
        ({"controlnet_conditioning_channel_order": "bgr"}, "controlnet_conditioning_channel_order='bgr'"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep': expected None"),
    ],
)
def test_options_that_no_tensor_shows_are_refused(config, message):
    theirs = numbers(control_peer("sd1"))
    control_net(SD1, theirs, dict(control_peer("sd1").config))
    with pytest.raises(UserError, match=f"{message}.*Fix: "):
        control_net(SD1, theirs, config)


def test_files_that_do_not_fit_are_refused():
    theirs = numbers(control_peer("sd1"))
    network = control_net(SD1, theirs)
    unet = {name: value for name, value in theirs.items() if "control" not in name}
    for tensors in ({}, unet):
        with pytest.raises(UserError, match=r"tensors: expected those of a ControlNet.*Fix: "):
            control_net(SD1, tensors)
    broken = {name: value for name, value in theirs.items() if "cond_embedding.blocks.1" not in name}
    with pytest.raises(UserError, match="expected the convolutions of a hint encoder, got 7 convolutions"):
        control_net(SD1, broken)
    for name in ("controlnet_down_blocks.3.weight", "mid_block.resnets.1.conv2.bias"):
        less = {key: value for key, value in theirs.items() if key != name}
        with pytest.raises(UserError, match=f"missing +{name}"):
            control_net_params(network, less)
    with pytest.raises(UserError, match=r"not read +lora_controlnet"):
        control_net_params(network, theirs | {"lora_controlnet": np.zeros(1)})


def test_a_control_net_of_another_model_is_refused():
    with pytest.raises(UserError, match=r"not read +add_embedding.linear_1"):
        control_net_params(control_net(SD1, numbers(control_peer("sdxl"))), numbers(control_peer("sdxl")))
    with pytest.raises(UserError, match=r"missing +add_embedding.linear_1"):
        control_net_params(control_net(SDXL, numbers(control_peer("sd1"))), numbers(control_peer("sd1")))
