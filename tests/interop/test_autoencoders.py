"""Published autoencoders: every naming there and back, files as diffusers writes and reads them, and refusals."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdiff.codecs.latent import Latent, parameter_shapes
from jaxdiff.errors import UserError
from jaxdiff.interop import autoencoder_configs as configs
from jaxdiff.interop.autoencoders import (
    SINGLE_FILE,
    AutoencoderWeights,
    Naming,
    entries,
    naming_of,
    network_of,
    own_names,
    read_autoencoder,
)
from jaxdiff.interop.mapping import to_params, to_tensors
from jaxdiff.models.autoencoder_kl import AutoencoderKL
from jaxdiff.typing import Weights
from tests.models.autoencoders import NETWORKS, draw, numbers, peer, random_params

NAMINGS = {
    "diffusers": Naming(),
    "diffusers_convolutions": Naming(axes=2),
    "old": Naming(old_attention=True),
    "old_convolutions": Naming(old_attention=True, axes=2),
    "single_file": SINGLE_FILE,
    "single_file_matrices": Naming(single_file=True),
    "single_file_sequences": Naming(single_file=True, axes=1),
}
CONFIG = {
    "_class_name": "AutoencoderKL", "block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip
ORIGIN = AutoencoderWeights("vae")


@functools.cache
def random(name):
    return random_params(NETWORKS[name])


def tensors_of(name, naming):
    return to_tensors(entries(NETWORKS[name], naming), random(name))


def same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("naming", NAMINGS.values(), ids=NAMINGS)
@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_every_naming_is_found_and_comes_back_bit_for_bit(name, naming):
    network, tensors = NETWORKS[name], tensors_of(name, naming)
    assert naming_of(tensors) == naming
    assert network_of(tensors, network.groups) == network
    same(to_params(entries(network, naming), tensors, parameter_shapes(network)), random(name))


@pytest.mark.parametrize("name", ["decoder_conv", "tiny", "tiny16"])
def test_other_architectures_are_found_from_shapes(name):
    network, tensors = NETWORKS[name], tensors_of(name, Naming())
    groups = {"groups": network.groups} if isinstance(network, AutoencoderKL) else {}
    assert network_of(tensors, **groups) == network
    same(to_params(entries(network), tensors, parameter_shapes(network)), random(name))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_names_are_diffusers(name):
    """What we write loads in diffusers, and comes back bit for bit."""
    torch, model = pytest.importorskip("torch"), peer(name)
    network, theirs = NETWORKS[name], numbers(model)
    params = to_params(entries(network), theirs, parameter_shapes(network))
    back = to_tensors(entries(network), params)
    assert back.keys() == theirs.keys()
    same(back, theirs)
    config = configs.model_config(Latent(network, ORIGIN))
    again = type(model).from_config(config)
    again.load_state_dict({key: torch.tensor(value) for key, value in back.items()})


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_diffusers_converts_our_single_file_to_its_own_names(name):
    utilities = pytest.importorskip("diffusers.loaders.single_file_utils")
    torch, config = pytest.importorskip("torch"), peer(name).config
    whole = {f"first_stage_model.{key}": value for key, value in tensors_of(name, SINGLE_FILE).items()}
    converted = utilities.convert_ldm_vae_checkpoint(
        {key: torch.tensor(value) for key, value in whole.items()}, dict(config)
    )
    found = {key: value.numpy() for key, value in converted.items()}
    expected = tensors_of(name, Naming())
    assert found.keys() == expected.keys()
    same(found, expected)


def test_diffusers_reads_the_old_names_of_attention_as_we_do(tmp_path):
    model = peer("sd")
    save_file(tensors_of("sd", NAMINGS["old"]), tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(configs.model_config(Latent(NETWORKS["sd"], ORIGIN))))
    same(numbers(type(model).from_pretrained(tmp_path, low_cpu_mem_usage=False)), tensors_of("sd", Naming()))
    network, params, _ = read_autoencoder(tmp_path)
    assert network == NETWORKS["sd"]
    same(params, random("sd"))


@pytest.mark.parametrize("name", ["sd", "tiny"])
def test_folders_that_diffusers_writes_are_read(tmp_path, name):
    model = peer(name)
    model.save_pretrained(tmp_path / "pipeline" / "vae")
    for folder in (tmp_path / "pipeline", tmp_path / "pipeline" / "vae"):
        network, params, config = read_autoencoder(folder)
        assert network == NETWORKS[name]
        assert config["_class_name"] == type(model).__name__
        same(params, to_params(entries(network), numbers(model), parameter_shapes(network)))


def published(prefix, network):
    params = random_params(network)
    tensors = to_tensors(entries(network, SINGLE_FILE), params)
    return params, {f"{prefix}{key}": value for key, value in tensors.items()}


@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
def test_the_autoencoder_in_a_file_of_a_whole_model_is_read(tmp_path, prefix):
    """Other parts, and the perceptual loss of the autoencoder's training, are left."""
    network = AutoencoderKL((32, 64), 1)
    params, tensors = published(prefix, network)
    others = {} if not prefix else {"model.diffusion_model.input_blocks.0.0.weight": draw(2)}
    save_file(tensors | others | {f"{prefix}loss.logvar": draw(1)}, tmp_path / "model.safetensors")
    weights = AutoencoderWeights(str(tmp_path / "model.safetensors"))
    assert isinstance(weights, Weights)
    assert weights.describe() == str(tmp_path / "model.safetensors")
    found, _, config = read_autoencoder(weights.path)
    assert (found, config) == (network, {})
    same(weights.read(), params)


def test_half_precision_becomes_float32(tmp_path):
    network = AutoencoderKL((32,), 1)
    params, tensors = published("", network)
    save_file(
        {key: value.astype(np.float16) for key, value in tensors.items()}, tmp_path / "half.safetensors"
    )
    found = read_autoencoder(tmp_path / "half.safetensors")[1]
    same(found, jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), params))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}


def test_a_missing_tensor_is_named(tmp_path):
    network = AutoencoderKL((32,), 1)
    _, tensors = published("", network)
    tensors["decoder.mid.attn_1.stray"] = tensors.pop("decoder.mid.attn_1.k.bias")
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(
        UserError, match=r"missing +decoder.mid.attn_1.k.bias[^$]*not read +decoder.mid.attn_1.stray"
    ):
        read_autoencoder(tmp_path / "file.safetensors")


def test_files_without_an_autoencoder_are_refused():
    with pytest.raises(UserError, match=r"path: expected the tensors of an autoencoder.*got a.weight.*Fix: "):
        own_names(["a.weight"])
    decoder = {key: x for key, x in tensors_of("sd", SINGLE_FILE).items() if key.startswith("decoder.")}
    with pytest.raises(UserError, match=r"got no encoder.conv_in.weight.*Fix: "):
        network_of(decoder)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_config_comes_back(name):
    options = {"scaling_factor": 0.7, "shift_factor": 0.1, "force_upcast": False}
    codec = Latent(NETWORKS[name], ORIGIN, **options)
    assert configs.codec(configs.model_config(codec), ORIGIN) == codec
    model = peer(name)
    assert configs.network({**model.config, "_class_name": type(model).__name__}) == NETWORKS[name]


def test_the_settings_of_published_configs():
    """Stable Diffusion 1 states no scale; SDXL, Stable Diffusion 3 and TAESD state theirs."""
    made = configs.codec(CONFIG, ORIGIN)
    assert (made.scaling_factor, made.shift_factor, made.force_upcast) == (0.18215, 0.0, True)
    assert made.network == AutoencoderKL((8, 16), 2, groups=4)
    xl = CONFIG | {"scaling_factor": 0.13025, "latents_mean": [1, 2, 3, 4], "latents_std": [1, 1, 1, 2]}
    made = configs.codec(xl, ORIGIN, dtype="float16", slices=1)
    assert (made.latents_mean, made.latents_std) == ((1.0, 2.0, 3.0, 4.0), (1.0, 1.0, 1.0, 2.0))
    assert (made.network.dtype, made.slices) == ("float16", 1)
    assert configs.codec(configs.model_config(made), ORIGIN, dtype="float16", slices=1) == made
    third = {"scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False, "latent_channels": 16}
    made = configs.codec(CONFIG | third, ORIGIN)
    assert (made.shift_factor, made.network.use_quant_conv) == (0.0609, False)
    tiny = configs.codec({"_class_name": "AutoencoderTiny"}, ORIGIN)
    assert (tiny.scaling_factor, tiny.force_upcast) == (1.0, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "VQModel"}, "_class_name='VQModel': expected AutoencoderKL or AutoencoderTiny"),
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"]}, "down_block_types=.*DownEncoderBlock2D at every level"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"]}, "up_block_types=.*UpDecoderBlock2D at every level"),
        ({"out_channels": 4}, "out_channels=4: expected in_channels=3"),
    ],
)  # fmt: skip
def test_other_networks_are_refused(change, message):
    with pytest.raises(UserError, match=f"{message}.*Fix: "):
        configs.network(CONFIG | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upsample_fn": "bilinear"}, "upsample_fn='bilinear'"),
        ({"upsampling_scaling_factor": 4}, "upsampling_scaling_factor=4"),
        ({"decoder_block_out_channels": [64, 32, 32, 32]}, "decoder_block_out_channels=.*one width everywhere"),
    ],
)  # fmt: skip
def test_other_tiny_networks_are_refused(change, message):
    with pytest.raises(UserError, match=f"{message}.*Fix: "):
        configs.network({"_class_name": "AutoencoderTiny"} | change)


def test_codecs_without_an_equivalent_are_refused():
    tiny = Latent(NETWORKS["tiny"], ORIGIN, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4)
    with pytest.raises(UserError, match=r"codec.latents_mean="):
        configs.model_config(tiny)
    other = dataclasses.replace(tiny, network=NETWORKS["sd"])
    assert configs.model_config(other)["latents_std"] == [1.0] * 4
