"""The published U-Nets of Stable Diffusion in their real sizes, of which only shapes are made."""

import functools

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxdiff.errors import UserError
from jaxdiff.interop.stable_diffusion_unet import entries
from jaxdiff.interop.stable_diffusion_unet_config import unet_layout
from jaxdiff.interop.stable_diffusion_unet_shapes import detect_layout
from tests.interop.stable_diffusion_unets import PATHS, PUBLISHED, SD1, denoiser_of, shapes
from tests.selection import some

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

COUNTS = {"sd1": 859_520_964, "sd1_inpaint": 859_535_364, "sd2": 865_910_724, "sdxl": 2_567_463_684}

ATTENTION = ("down_blocks.0.attentions", "down_blocks.1.attentions", "mid_block.attentions")


def hollow(config):
    """The tensors that diffusers makes for a config: arrays of the right shapes without memory."""
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel(**config)
    return {key: zeros(value.shape) for key, value in model.state_dict().items()}


def zeros(shape):
    return np.broadcast_to(np.zeros((), np.float32), tuple(shape))


@functools.cache
def published(name):
    return hollow(PUBLISHED[name])


def renamed(layout, tensors):
    """The tensors of a folder under the names of a single file."""
    ours = {entry.path: entry.keys for entry in entries(layout, **PATHS)}
    pairs = [
        (entry.keys, ours[entry.path]) for entry in entries(layout, "original", **PATHS) if entry.path in ours
    ]
    names = {new: old for keys in pairs for new, old in zip(*keys, strict=False)}
    return {new: tensors[old] for new, old in names.items() if old in tensors}


@pytest.mark.spread(5)
@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_tell_what_the_config_tells(name):
    layout, tensors = unet_layout(PUBLISHED[name]), published(name)
    assert detect_layout(tensors) == layout
    if name != "consistency":
        original = renamed(layout, tensors)
        assert len(original) == len(tensors)
        assert detect_layout(original) == layout


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", some([*COUNTS, "refiner", "upscaler"], ("sd1", "sd2", "upscaler")))
def test_every_tensor_has_its_shape(name):
    params = flatten_dict(shapes(denoiser_of(unet_layout(PUBLISHED[name]), pooled=1280), side=64), sep="/")
    found = {}
    for entry in entries(unet_layout(PUBLISHED[name]), **PATHS):
        if entry.path in params:
            arrays = entry.layout.save(zeros(params.pop(entry.path).shape))
            found |= {key: array.shape for key, array in zip(entry.keys, arrays, strict=True)}
    assert not params
    assert found == {key: array.shape for key, array in published(name).items()}
    if name in COUNTS:
        assert sum(np.prod(shape, dtype=int) for shape in found.values()) == COUNTS[name]


def test_other_sizes_show_and_the_number_of_groups_is_given():
    config = SD1 | {"attention_head_dim": 8, "layers_per_block": [1, 3, 2], "time_embedding_dim": 40}
    assert detect_layout(hollow(config), groups=8) == unet_layout(config)
    with pytest.raises(UserError, match=r"groups=32: expected a divisor of the width 16.*Fix: "):
        detect_layout(hollow(config))


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("conv_in.", "expected the tensors of a U-Net"),
        ("conv_out.", "expected the tensor conv_out.weight"),
        ("time_embedding.", "expected the tensor time_embedding.linear_1.weight"),
        ("down_blocks.", "expected residual blocks at every level"),
        (ATTENTION, "expected a U-Net that attends"),
        ("down_blocks.0.attentions.0.proj_in", "expected the tensor down_blocks.0.attentions.0.proj_in.weight"),
    ],
)  # fmt: skip
def test_other_tensors_are_refused(without, message):
    tensors = {key: array for key, array in hollow(SD1).items() if not key.startswith(without)}
    with pytest.raises(UserError, match=f"^--from: {message}[^\n]*Fix: [^\n]*$"):
        detect_layout(tensors, groups=8)


def test_a_level_without_blocks_is_refused():
    tensors = renamed(unet_layout(PUBLISHED["sd1"]), published("sd1"))
    kept = {key: array for key, array in tensors.items() if not key.startswith("input_blocks.4.")}
    kept["input_blocks.4.0.op.weight"] = zeros((640, 640, 3, 3))
    with pytest.raises(UserError, match=r"at every level of a U-Net, got \[2, 0, 1, 2, 2\]"):
        detect_layout(kept)
