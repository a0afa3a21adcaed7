"""Weights under the prefixes of wrappers are those weights, and no value is NaN or infinite."""

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.interop import families
from jaxdiff.interop.mapping import CONV, SAME, Entry, to_params
from jaxdiff.interop.tensors import read_tensors

torch = pytest.importorskip("torch")

NAMES = {
    "diffusers": ("conv_in.weight", "conv_in.bias"),
    "EDM": ("model.enc.8x8_conv.weight", "model.map_noise.freqs"),
    "EDM2": ("unet.enc.8x8_conv.weight", "unet.out_gain"),
    "guided-diffusion": ("input_blocks.0.0.weight", "time_embed.0.weight"),
}
PREFIXES = [
    "module.",
    "_orig_mod.",
    "model.",
    "ema_model.",
    "net.",
    "module._orig_mod.",
    "_orig_mod.module.model.",
]


@pytest.mark.parametrize("prefix", ["", *PREFIXES])
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_a_prefix_of_all_names_is_removed(names, prefix):
    found = families.unwrapped([prefix + name for name in names])
    assert found == (prefix, {name: prefix + name for name in names})


def test_counters_of_a_wrapper_are_left_out():
    assert families.unwrapped(["n_averaged", "module.conv_in.weight"]) == (
        "module.", {"conv_in.weight": "module.conv_in.weight"},
    )  # fmt: skip


@pytest.mark.parametrize(
    "names", [[], ["weight"], ["a.x", "b.x"], ["a.x.y", "a.x.z"], ["module.a", "x.conv_in.weight"]]
)
def test_unknown_names_stay(names):
    assert families.unwrapped(names) == ("", {name: name for name in names})


STATE = {"conv_in.weight": np.ones((2, 1, 3, 3), np.float32), "conv_in.bias": np.zeros(2, np.float32)}


def prefixed(prefix, factor=1.0):
    return {prefix + name: torch.tensor(factor * array) for name, array in STATE.items()}


FILES = {
    "plain": (prefixed("module."), None, 1),
    "nested": ({"state_dict": prefixed("module."), "epoch": 3}, None, 1),
    "averaged": ({"state_dict": prefixed("module."), "ema": prefixed("module.", 2.0)}, None, 2),
    "trained": ({"state_dict": prefixed("module."), "ema": prefixed("module.", 2.0)}, False, 1),
    "pairs in a wrapper": (prefixed("module.ema_model.", 2.0) | prefixed("module.online_model."), None, 2),
    "compiled inside": ({"model": prefixed("_orig_mod.module.")}, None, 1),
    "averages of PyTorch": (prefixed("module.") | {"n_averaged": torch.tensor(7)}, None, 1),
}


@pytest.mark.parametrize(("content", "ema", "factor"), FILES.values(), ids=FILES)
def test_a_wrapped_file_has_the_tensors_of_the_plain_one(content, ema, factor, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    tensors = read_tensors(tmp_path / "a.pt", ema).tensors
    found = tensors.renamed(families.unwrapped(tensors)[1])
    assert set(found) == set(STATE)
    for name, array in STATE.items():
        np.testing.assert_array_equal(found[name], factor * array)


@pytest.mark.parametrize(("ema", "sets"), [(True, {"model": prefixed("")}), (False, {"ema": prefixed("")})])
def test_errors_speak_of_the_flag(ema, sets, tmp_path):
    torch.save(sets, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"Fix: leave the choice \(--weights\) out") as error:
        read_tensors(tmp_path / "a.pt", ema)
    assert "ema=" not in str(error.value)


ENTRIES = [Entry("a/kernel", ("conv_in.weight",), CONV), Entry("a/bias", ("conv_in.bias",), SAME)]
ABSTRACT = {"a": {"kernel": np.zeros((3, 3, 1, 2), np.float32), "bias": np.zeros(2, np.float32)}}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_named_and_counted(value):
    weight = STATE["conv_in.weight"].astype(np.float64)
    weight[0, 0, :2, 0] = value  # 1e300 is beyond our float32
    with pytest.raises(UserError, match=r"expected finite numbers, got .*: 2 of conv_in\.weight\. Fix: "):
        to_params(ENTRIES, STATE | {"conv_in.weight": weight}, ABSTRACT)
