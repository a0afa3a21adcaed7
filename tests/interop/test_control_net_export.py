"""The ControlNet of a run in diffusers' layout: its tensors come back bit for bit, and diffusers opens the folder."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdiff.conditioning.control import ControlImage
from jaxdiff.errors import UserError
from jaxdiff.interop.control_net import control_net, control_net_params
from jaxdiff.interop.control_net_export import exported_control_net
from jaxdiff.models.control_net import Controlled
from tests.controls import a_denoiser, control_peer, numbers


def model(*names):
    """A model with ControlNets of these names, the parameters of the ControlNets, and their tensors in diffusers."""
    plain, tensors = a_denoiser("sd1"), numbers(control_peer("sd1"))
    network = control_net(plain, tensors)
    conditions = {name: ControlImage(3, factor=1 / 8, control=name) for name in names}
    denoiser = a_denoiser("sd1", **conditions).clone(
        network=Controlled(plain.network, dict.fromkeys(names, network))
    )
    own = control_net_params(network, tensors)
    return denoiser, {"network": {f"controls_{name}": own for name in names}}, tensors


def test_it_is_opened_by_diffusers_and_comes_back_bit_for_bit(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    denoiser, params, expected = model("edges")
    config, tensors = exported_control_net(denoiser, params)
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    opened, info = diffusers.ControlNetModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for name, value in numbers(opened).items():
        np.testing.assert_array_equal(value, expected[name])
    assert {*config} - {"_class_name"} <= {*opened.config}
    peer = control_peer("sd1").config
    plain = {field: value for field, value in opened.config.items() if not field.startswith("_")}
    same = ("attention_head_dim", "norm_num_groups", "norm_eps", "flip_sin_to_cos", "freq_shift")
    assert {field: plain[field] for field in same} == {field: peer[field] for field in same}
    assert control_net(denoiser, tensors, config) == denoiser.network.controls["edges"]


def test_several_control_nets_are_refused():
    denoiser, params, _ = model("edges", "depth")
    with pytest.raises(UserError, match=r"expected a run with one ControlNet, got 2: depth, edges\. Fix"):
        exported_control_net(denoiser, params)
