"""DINOv2 against transformers' `Dinov2Model` and `Dinov2WithRegistersModel`, and its positions against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, describe
from jaxdiff.errors import UserError
from jaxdiff.interop.dinov2 import dinov2_network, dinov2_params, dinov2_tensors
from jaxdiff.models.dinov2 import Dinov2
from tests.text_models import assert_close, numbers, randomise, run

SMALL = {
    "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 3, "image_size": 20,
    "patch_size": 4, "layer_norm_eps": 1e-6,
}  # fmt: skip


@functools.cache
def a_peer(registers):
    transformers = pytest.importorskip("transformers")
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**SMALL, num_register_tokens=registers)
        return randomise(transformers.Dinov2WithRegistersModel(config))
    return randomise(transformers.Dinov2Model(transformers.Dinov2Config(**SMALL)))


def pixels(height, width):
    return np.random.default_rng(0).standard_normal((2, height, width, 3)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.spread(2)
@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("size", [(20, 20), (28, 12)])
def test_the_tokens_are_transformers(registers, size):
    torch = pytest.importorskip("torch")
    peer, x = a_peer(registers), pixels(*size)
    with torch.no_grad():
        expected = peer(torch.tensor(x.transpose(0, 3, 1, 2)))
    network = dinov2_network(numbers(peer)).clone(offset=0.0)
    found = run(network, dinov2_params(network, numbers(peer)), jnp.asarray(x))
    assert_close(found.vector, expected.pooler_output)
    assert_close(found.tokens.features, expected.last_hidden_state[:, 1 + registers :])


@pytest.mark.slow
@pytest.mark.parametrize("registers", [0, 4])
def test_vit_s_at_224_pixels_is_transformers(registers):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    options = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**options, num_register_tokens=registers)
        peer = randomise(transformers.Dinov2WithRegistersModel(config), 0.05)
    else:
        peer = randomise(transformers.Dinov2Model(transformers.Dinov2Config(**options)), 0.05)
    x = pixels(224, 224)
    with torch.no_grad():
        expected = peer(torch.tensor(x.transpose(0, 3, 1, 2))).pooler_output
    network = dinov2_network(numbers(peer)).clone(offset=0.0)
    assert_close(run(network, dinov2_params(network, numbers(peer)), jnp.asarray(x)).vector, expected)


def test_positions_of_the_original_code():
    """It gives PyTorch the factor of a size that is 0.1 larger, so positions are not those of transformers."""
    torch = pytest.importorskip("torch")
    peer = a_peer(0)
    network = dinov2_network(numbers(peer))
    assert network.offset == 0.1
    params = dinov2_params(network, numbers(peer))
    table = torch.tensor(params["position_embedding"][1:].reshape(1, 5, 5, 128)).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(table, scale_factor=((3 + 0.1) / 5,) * 2, mode="bicubic")
    moved = np.concatenate(
        [params["position_embedding"][:1], resized[0].permute(1, 2, 0).reshape(9, 128).numpy()]
    )
    same = network.clone(image_size=12)
    x = jnp.asarray(pixels(12, 12))
    expected = run(same, {**params, "position_embedding": moved}, x)
    assert_close(run(network, params, x).vector, expected.vector)
    other = run(network.clone(offset=0.0), params, x).vector
    assert np.abs(np.asarray(other) - np.asarray(expected.vector)).max() > 1e-3


@pytest.mark.parametrize("registers", [0, 3])
def test_files_of_all_layouts_hold_the_same_network(registers):
    theirs = numbers(a_peer(registers))
    network = dinov2_network(theirs)
    params = dinov2_params(network, theirs)
    assert (network.registers, network.heads, network.hidden) == (registers, 2, 384)
    for layout in ("transformers", "transformers 5", "original"):
        file = dinov2_tensors(network, params, layout) | {"mask_token": np.zeros((1, 128), np.float32)}
        for prefix in ("", "dinov2."):
            named = {f"{prefix}{name}": value for name, value in file.items()}
            assert dinov2_network(named) == network
            jax.tree.map(np.testing.assert_array_equal, dinov2_params(network, named), params)
    original = dinov2_tensors(network, params, "original")
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.2.ls1.gamma",
            "blocks.2.mlp.fc2.bias", "norm.weight"} <= original.keys()  # fmt: skip
    query, key, value = np.split(original["blocks.1.attn.qkv.weight"], 3)
    files = dinov2_tensors(network, params)
    for part, name in ((query, "query"), (key, "key"), (value, "value")):
        np.testing.assert_array_equal(part, files[f"encoder.layer.1.attention.attention.{name}.weight"])


def test_the_names_of_transformers_published_files_are_known(tmp_path):
    peer = a_peer(0)
    peer.save_pretrained(tmp_path)
    from jaxdiff.interop.tensors import read_tensors

    tensors = read_tensors(tmp_path).tensors
    assert "encoder.layer.0.attention.attention.query.weight" in tensors
    network = dinov2_network(tensors)
    expected = dinov2_params(network, numbers(peer))
    jax.tree.map(np.testing.assert_array_equal, dinov2_params(network, tensors), expected)


@pytest.mark.parametrize(
    ("width", "heads", "layers", "registers"), [(384, 6, 12, 0), (768, 12, 12, 4), (1024, 16, 24, 0)]
)
def test_published_sizes(width, heads, layers, registers):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    options = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": layers}
    options |= {"image_size": 518, "patch_size": 14}
    with torch.device("meta"):
        if registers:
            config = transformers.Dinov2WithRegistersConfig(**options, num_register_tokens=registers)
            peer = transformers.Dinov2WithRegistersModel(config)
        else:
            peer = transformers.Dinov2Model(transformers.Dinov2Config(**options))
    tensors = {name: np.broadcast_to(np.float32(0), value.shape) for name, value in peer.state_dict().items()}
    network = dinov2_network(tensors)
    assert network == Dinov2(width, layers, heads, 4 * width, registers)


def test_other_files_are_refused():
    tensors = numbers(a_peer(0))
    network = dinov2_network(tensors)
    with pytest.raises(UserError, match=r"expected those of DINOv2.*got fc\.bias"):
        dinov2_network({"fc.bias": np.zeros(3)})
    less = {name: value for name, value in tensors.items() if name != "encoder.layer.1.layer_scale2.lambda1"}
    with pytest.raises(UserError, match="nothing was loaded") as error:
        dinov2_params(network, less | {"head.weight": np.zeros(3)})
    assert len(error.value.details) == 2


def test_impossible_options_and_images():
    with pytest.raises(UserError, match="width=100: expected a multiple of heads=3"):
        Dinov2(100, 1, 3)
    with pytest.raises(UserError, match="multiple of patch=14"):
        Dinov2(64, 1, 1, image_size=100)
    with pytest.raises(UserError, match=r"pixels=\(15, 14\)"):
        jax.eval_shape(Dinov2(64, 1, 1).init, jax.random.key(0), jnp.zeros((1, 15, 14, 3)))
    network = Dinov2(64, 2, 1, registers=4)
    assert build(describe(network)) == network
